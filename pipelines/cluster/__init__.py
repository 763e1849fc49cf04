"""A run on many machines: dask carries paths and states, the machines read and write the files themselves."""
