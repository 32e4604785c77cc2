"""What the tests on machines share: the machine, its line, and a gateway to judge by.

machine.py   one emulated board: power, console, memory cards
linkbox.py   the line between a machine and the broker, and everything that befalls it
modem.py     what a modem does with bytes: transparent, or behind AT commands
bench.py     broker, gateway, database and the judgement
deploy.py    gets the agent onto a machine over its serial line
results.py   figures that tests leave for report.py
"""
