"""`report.html`: bundles to look at, from manifests, golden files and layer reports alone; nothing is run again."""
