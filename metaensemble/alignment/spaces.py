"""Channels of intermediate values: which of them must be permuted alike.

A *space* is a set of channels that may change places. A dimension of a value is a chain
of pieces, each a space whose channels own `span` consecutive entries. What the layers
demand only ever narrows the freedom: two spaces become one, a space splits at a
boundary, its channels move in blocks only, or it freezes. This is union-find in which a
representative may also be a chain of smaller or coarser spaces.
"""

import math
from dataclasses import dataclass
from itertools import accumulate


@dataclass(frozen=True)
class Piece:
    """A space in a dimension; each of its channels owns `span` entries."""

    space: int
    span: int = 1


Dim = tuple[Piece, ...]
"""One dimension of a value, from its first entry to its last."""


class Spaces:
    """All spaces of one traced network."""

    def __init__(self) -> None:
        self.size: list[int] = []
        self.name: list[str] = []
        self.why: list[str | None] = []
        """Why the space is frozen, or None."""
        self.heads: list[int] = []
        """Blocks that move as wholes and may be permuted inside; 1: there are none."""
        self._became: dict[int, Dim] = {}

    def new(self, size: int, name: str, why: str | None = None, heads: int = 1) -> Dim:
        """Return a dimension of channels nobody has seen yet, frozen if `why` is."""
        self.size.append(size)
        self.name.append(name)
        self.why.append(why)
        self.heads.append(heads)
        return (Piece(len(self.size) - 1),)

    def resolve(self, dim: Dim) -> Dim:
        """Return the dimension in terms of the spaces as they are now."""
        pieces: list[Piece] = []
        for piece in dim:
            became = self._became.get(piece.space)
            if became is None:
                pieces.append(piece)
            else:
                inner = self.resolve(became)
                pieces += [Piece(p.space, p.span * piece.span) for p in inner]
        return tuple(pieces)

    def entries(self, piece: Piece) -> int:
        """Return how many entries of the dimension a piece takes."""
        return self.size[piece.space] * piece.span

    def length(self, dim: Dim) -> int:
        """Return the dimension's number of entries."""
        return sum(self.entries(piece) for piece in dim)

    def frozen(self, dim: Dim) -> str | None:
        """Return why no entry of the dimension can move, or None if some can."""
        whys = [self.why[piece.space] for piece in self.resolve(dim)]
        return whys[0] if all(whys) else None

    def freeze(self, dim: Dim, why: str) -> None:
        """Bind every channel of the dimension to its place."""
        for piece in self.resolve(dim):
            self.why[piece.space] = self.why[piece.space] or why

    def tie(self, a: Dim, b: Dim) -> None:
        """Demand that two dimensions of one length are permuted alike."""
        a, b = self.resolve(a), self.resolve(b)
        assert self.length(a) == self.length(b)
        while (edges := set(self._edges(a))) != (others := set(self._edges(b))):
            for edge in edges | others:
                a = self._cut(a, edge)
                b = self._cut(b, edge)
            a, b = self.resolve(a), self.resolve(b)
        for p, q in zip(a, b, strict=True):
            self._unite(p, q)

    def part(self, dim: Dim, start: int, stop: int) -> Dim:
        """Return the entries from `start` to `stop`, splitting spaces at both."""
        dim = self._cut(self._cut(self.resolve(dim), start), stop)
        dim = self.resolve(dim)
        starts = [0, *self._edges(dim)]
        return tuple(
            p for p, at in zip(dim, starts, strict=False) if start <= at < stop
        )

    def outer(self, dim: Dim, block: int) -> Dim:
        """Return the dimension in units of `block` entries, which so become rigid.

        The dimension's length must be a multiple of `block`.
        """
        dim = self.resolve(dim)
        if any(edge % block for edge in self._edges(dim)):
            self.freeze(dim, f"blocks of {block} do not fit its parts")
        if why := self.frozen(dim):
            return self.new(self.length(dim) // block, "", why)
        for piece in dim:
            if not self.why[piece.space] and piece.span % block:
                self._coarsen(piece.space, math.lcm(piece.span, block) // piece.span)
        out: list[Piece] = []
        for piece in self.resolve(dim):
            why = self.why[piece.space]
            if why:
                out += self.new(self.entries(piece) // block, "", why)
            else:
                out.append(Piece(piece.space, piece.span // block))
        return tuple(out)

    def inner(self, dim: Dim, factor: int) -> Dim:
        """Return the dimension in which every entry is followed by `factor` - 1 more.

        They belong to it and keep their order: what flattening the positions of a
        channel makes of the channels.
        """
        return tuple(Piece(p.space, p.span * factor) for p in dim)

    def in_heads(self, dim: Dim, heads: int) -> None:
        """Let channels move inside equal blocks, and the blocks as wholes."""
        dim = self.resolve(dim)
        if len(dim) == 1 and dim[0].span == 1:
            name = self.name[dim[0].space]
            self.tie(dim, self.new(self.size[dim[0].space], name, heads=heads))
        else:
            self.outer(dim, self.length(dim) // heads)

    def _edges(self, dim: Dim) -> list[int]:
        return list(accumulate(self.entries(piece) for piece in dim))

    def _cut(self, dim: Dim, edge: int) -> Dim:
        """Return the dimension with a boundary between pieces at an entry."""
        out: list[Piece] = []
        at = 0
        for piece in self.resolve(dim):
            inside = edge - at
            at += self.entries(piece)
            if inside <= 0 or edge >= at:
                out.append(piece)
                continue
            space = piece.space
            if not self.why[space]:
                if inside % piece.span:
                    self.freeze((piece,), "a boundary runs through one of its channels")
                else:
                    self._split(space, inside // piece.span)
            if why := self.why[space]:
                out += self.new(inside, "", why)
                out += self.new(at - edge, "", why)
            else:
                out += self._cut((piece,), inside)
        return tuple(out)

    def _split(self, space: int, at: int) -> None:
        block = self.size[space] // self.heads[space]
        if self.heads[space] > 1:
            self._coarsen(space, block)
            if at % block:
                self.freeze((Piece(space),), "a boundary runs through a head")
            return  # the caller cuts what the space has become
        sizes = (at, self.size[space] - at)
        first, second = (self.new(size, self.name[space]) for size in sizes)
        self._became[space] = first + second

    def _coarsen(self, space: int, block: int) -> None:
        """Make the space's channels move in rigid blocks."""
        size, heads = self.size[space], self.heads[space]
        own = size // heads
        if size % block or (heads > 1 and block % own and own % block):
            self.why[space] = f"blocks of {block} do not fit its {size} channels"
            return
        heads = heads if heads > 1 and own % block == 0 and own > block else 1
        new = self.new(size // block, self.name[space], heads=heads)
        self._became[space] = self.inner(new, block)

    def _unite(self, p: Piece, q: Piece) -> None:
        (p,), (q,) = self.resolve((p,)), self.resolve((q,))
        if p == q:
            return
        why = self.why[p.space] or self.why[q.space]
        if why is None and p.space == q.space:
            why = "it would have to be permuted in two ways at once"
        if why:
            self.freeze((p, q), why)
            return
        if p.span != q.span:
            common = math.lcm(p.span, q.span)
            for piece in (p, q):
                if piece.span != common:
                    self._coarsen(piece.space, common // piece.span)
            self._unite(p, q)
            return
        heads = {self.heads[p.space], self.heads[q.space]} - {1}
        if len(heads) > 1:  # only whole blocks of the larger kind suit both
            block = self.size[p.space] // min(heads)
            self._coarsen(p.space, block)
            self._coarsen(q.space, block)
            self._unite(p, q)
            return
        first, second = sorted((p.space, q.space))
        self.heads[first] = max(heads, default=1)
        self.name[first] = self.name[first] or self.name[second]
        self._became[second] = (Piece(first),)
