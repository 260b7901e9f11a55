"""The generation engine: continuous batching over one backbone, any prefix in any row; see :mod:`.engine`."""
