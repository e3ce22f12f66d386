"""Kernel rows by family: each module registers its rows in `xdeploy.kernel.KERNELS`."""
