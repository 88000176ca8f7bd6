"""Networks: torchvision's classifiers, ResNets of any width, and custom networks, all with `features` and `head`."""
