"""What the three passes of every layer with weights have in common."""

from __future__ import annotations

import dataclasses

from gradiron.arch.isa import BMode, Out, Track
from gradiron.arch.numerics import Rounding
from gradiron.operations.layers import Gradient, Site
from gradiron.operations.products import Product


def finish_forward(product: Product, site: Site) -> Product:
    """What every layer with weights has in its forward pass: the result's form, bias and skip."""
    logits = bool(site.y.low)
    skip = site.skip
    return dataclasses.replace(
        product,
        out=Out.LOGITS if logits else Out.INT8,
        rounding=Rounding.NEAREST if logits else Rounding.TFLITE,
        relu=site.relu,
        bias=site.p.bias,
        track=Track.TRACK if site.train and not logits else Track.NONE,
        skip=skip.tensor if skip else "",
        exponents=(*product.exponents, skip.exponent) if skip else product.exponents,
    )


def finish_dx(products: list[Product], into: Gradient) -> tuple[Product, ...]:
    """What every dX by weights has: rounding, mask, the earlier partial gradient, the tracker."""
    found = [
        dataclasses.replace(
            product,
            rounding=Rounding.STOCHASTIC,
            mask=into.mask,
            skip=into.skip,
            exponents=(*product.exponents, into.skip_exponent) if into.skip else product.exponents,
        )
        for product in products
    ]
    found[-1] = dataclasses.replace(found[-1], track=Track.TRACK)
    return tuple(found)


def finish_dw(product: Product, site: Site) -> tuple[Product, ...]:
    """What every update has; one product for each range of a sparse one."""
    p = site.p
    whole = dataclasses.replace(
        product,
        transposed=True,
        out=p.out,
        rounding=Rounding.STOCHASTIC,
        bias=p.bias,
        velocity=(p.velocity_high, p.velocity_low, p.velocity_bias),
    )
    if not site.layer.columns:
        return (whole,)
    diagonal = whole.b.by == BMode.DIAGONAL
    return tuple(
        dataclasses.replace(
            whole,
            columns=count,
            first=first,
            a=dataclasses.replace(whole.a, x0=whole.a.x0 + first) if diagonal else whole.a,
            b=dataclasses.replace(whole.b, offset=first),
            o=dataclasses.replace(whole.o, offset=first),
        )
        for first, count in site.layer.columns
    )
