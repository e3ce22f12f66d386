"""Planning: which weight format each layer gets, under a budget, with a reason per line."""
