#!/usr/bin/env bash
# The two instance profiles of aws.yaml, made once: bash cluster/ray/aws_roles.sh BUCKET
#   wa-node may read, write and delete in the bucket; wa-head may too, and may start and end instances as wa-node.
set -euo pipefail
bucket=${1:?the name of the bucket}

policy() { printf '{"Version": "2012-10-17", "Statement": [%s]}' "$1"; }

in_bucket=$(cat <<JSON
{"Effect": "Allow", "Action": ["s3:ListBucket", "s3:GetBucketLocation"], "Resource": "arn:aws:s3:::$bucket"},
{"Effect": "Allow", "Action": ["s3:GetObject", "s3:PutObject", "s3:DeleteObject", "s3:AbortMultipartUpload"],
 "Resource": "arn:aws:s3:::$bucket/*"}
JSON
)
assume='{"Effect": "Allow", "Principal": {"Service": "ec2.amazonaws.com"}, "Action": "sts:AssumeRole"}'

for name in wa-node wa-head; do
  aws iam create-role --role-name "$name" --assume-role-policy-document "$(policy "$assume")" --output text \
    --query Role.Arn
  aws iam put-role-policy --role-name "$name" --policy-name bucket --policy-document "$(policy "$in_bucket")"
  aws iam create-instance-profile --instance-profile-name "$name" --output text --query InstanceProfile.Arn
  aws iam add-role-to-instance-profile --instance-profile-name "$name" --role-name "$name"
done

node=$(aws iam get-role --role-name wa-node --output text --query Role.Arn)
aws iam attach-role-policy --role-name wa-head --policy-arn arn:aws:iam::aws:policy/AmazonEC2FullAccess
aws iam put-role-policy --role-name wa-head --policy-name starts-workers --policy-document \
  "$(policy "{\"Effect\": \"Allow\", \"Action\": \"iam:PassRole\", \"Resource\": \"$node\"}")"
