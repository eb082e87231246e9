"""The loss around a model: how concentrated its gradient is, how the loss varies along random directions, how flat it is.

    concentration.py   what share of the gradient the largest components carry
    directions.py      losses along random directions
    sharpness.py       how much the loss rises nearby
    measurement.py     all of it of a pre-trained model, a randomly initialised one and a tuned one
"""
