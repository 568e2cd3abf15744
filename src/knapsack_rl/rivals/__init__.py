"""The rules of other papers, each under its paper's name, behind the protocols that ours is behind."""
