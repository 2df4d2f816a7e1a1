"""Recordings and images: the HDF5 data set, leak-free splits, and the readers that make one."""

from migvis.data.arrays import dataset_from_arrays
from migvis.data.dataset import Dataset, Stimuli, Subject, load_dataset, write_dataset
from migvis.data.splits import grouped_split, picture_ids

__all__ = [
    "Dataset",
    "Stimuli",
    "Subject",
    "dataset_from_arrays",
    "grouped_split",
    "load_dataset",
    "picture_ids",
    "write_dataset",
]
