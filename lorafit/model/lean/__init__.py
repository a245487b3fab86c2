"""Layers that train the same numbers from less memory: `kernels: lorafit`.

Data flows through them in this order: `install` puts them into a model, `layers` holds the forward
pass of each architecture, `linears` the frozen products with their adapters, `norms`,
`activations`, `rotary` and `dropout` what happens between products, `products` the matrix products
themselves.
"""
