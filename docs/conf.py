"""The site of the documents: ``make docs``."""

project = "agnosco"
author = "the agnosco authors"
html_title = "agnosco"
html_theme = "furo"
extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
exclude_patterns = ["_build"]
myst_enable_extensions = ["dollarmath", "colon_fence"]
myst_heading_anchors = 3
nb_execution_mode = "off"  # the tests run the notebook
autodoc_typehints = "description"
autodoc_member_order = "bysource"
nitpicky = False
