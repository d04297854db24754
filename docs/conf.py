"""The site of the documents: ``make docs``."""

project = "agnosco"
author = "the agnosco authors"
html_title = "agnosco"
html_theme = "furo"
extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
exclude_patterns = ["_build"]
myst_enable_extensions = ["dollarmath", "colon_fence"]
myst_heading_anchors = 3
nb_execution_mode = "cache"  # no output is kept in the repository: the site shows what its own run gave
nb_execution_cache_path = "../build/notebooks"
nb_execution_in_temp = True
nb_execution_raise_on_error = True
nb_execution_timeout = 600
autodoc_typehints = "description"
autodoc_member_order = "bysource"
nitpicky = False
