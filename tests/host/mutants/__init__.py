"""Programs that run the real agent or gateway with one promise broken, for test_demo.py.

Each patches one method of the code in the tree and then hands over to the real `main`.
The controls break nothing: they only die at the same moment as their mutant, to show that
it is the broken promise that turns the demo red, and not the moment.
"""
