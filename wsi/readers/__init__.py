"""One file-format library each, behind the protocol of `wsi.slide`."""
