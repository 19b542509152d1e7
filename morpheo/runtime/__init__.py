"""How containers are run: images, archives, workspaces, caches, and the engine behind one contract."""
