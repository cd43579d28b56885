"""What decodes: engines behind `easel.protocol.Engine`.

The only package that may import torch. It knows token ids, not text; requests, not tenants.
"""
