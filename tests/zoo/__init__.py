"""The conformance zoo: int8 models made from seeds, and what TensorFlow Lite Micro makes of them.

builder      writes a .tflite file
operators    models of one operator each
networks     whole networks with random weights, most shaped like MLPerf Tiny's
cases        the list of them all
oracle       runs models on TensorFlow Lite Micro; a program for a venv of its own
make_golden  writes what the tests compare with; models are made anew, never stored
contract     what kernels may rely on, checked from outside
fuzz         damaged models
"""
