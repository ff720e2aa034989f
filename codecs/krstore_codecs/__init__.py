"""krstore's own codecs, registered under the entry-point group ``krstore.codecs`` as a third party's would be."""
