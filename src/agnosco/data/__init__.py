"""Images: sample sets, decoded from folders of files, made from nothing, or labelled to train on."""
