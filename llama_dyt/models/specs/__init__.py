"""Our families, one file each; they import neither torch nor transformers."""
