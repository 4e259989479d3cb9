"""What happens to an engine that was judged: waivers, passports and signatures, promotion, packages.

waivers     named failures that a recipe lets through until a day (pure)
passport    what is known of an engine, in one signed file that travels with its bytes
signing     ed25519 keys: by path or environment
promotion   which engines become champions, and what is said of each
package     engines as a Triton model repository; triton, warmup: its parts
"""
