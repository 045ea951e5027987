"""Importing it decides one thing: these packages are found where this one lies, whatever the user's folder holds."""

from sweeps.import_order import product_first as _product_first

_product_first()
