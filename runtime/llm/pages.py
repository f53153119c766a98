"""The pool of pages: which sequence has which, and which hold prefixes that a later sequence may share.

A full page of tokens is found again by a hash of its tokens and of all pages before it. The tokens are compared too, so
that two prefixes with one hash are never taken for each other. A page that nobody uses any more keeps what it holds
until it is needed: the one that was used the longest time ago goes first. Kwon et al., "Efficient Memory Management for
Large Language Model Serving with PagedAttention" (2023), describe such pools.
"""

from __future__ import annotations

import hashlib
from array import array
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass

from arcweld.compiler.errors import UsageError


@dataclass(slots=True)
class _Page:
    users: int = 0
    key: bytes = b""  # of the prefix that ends with this page; empty: it is not to be found
    tokens: tuple[int, ...] = ()


class PagePool:
    """``count`` pages of ``page_size`` positions. ``caching``: full pages may be shared by sequences.

    Every page is free, used by at least one sequence, or cached: unused, but with a prefix that can be found.
    """

    def __init__(self, count: int, page_size: int, caching: bool = True) -> None:
        if count < 1 or page_size < 1:
            raise UsageError(f"a pool of {count} pages of {page_size} positions")
        self.count, self.page_size, self.caching = count, page_size, caching
        self._pages = [_Page() for _ in range(count)]
        self._free = list(range(count - 1, -1, -1))
        self._cached: OrderedDict[int, None] = OrderedDict()  # unused pages with a prefix, the oldest first
        self._by_key: dict[bytes, int] = {}

    # ------------------------------------------------------------------------------------------------- counting

    @property
    def free(self) -> int:
        """Pages that hold nothing."""
        return len(self._free)

    @property
    def cached(self) -> int:
        """Unused pages that hold a prefix."""
        return len(self._cached)

    @property
    def used(self) -> int:
        """Pages of sequences, each once."""
        return self.count - self.free - self.cached

    @property
    def available(self) -> int:
        """Pages that ``take`` can give."""
        return self.free + self.cached

    def is_unused(self, page: int) -> bool:
        """Whether no sequence has this page."""
        return self._pages[page].users == 0

    def pages_for(self, positions: int) -> int:
        """How many pages hold so many positions."""
        return -(-positions // self.page_size)

    # -------------------------------------------------------------------------------------------------- changing

    def take(self, count: int) -> list[int] | None:
        """``count`` pages for one sequence; None, and nothing has changed, if there are not so many."""
        if count > self.available:
            return None
        found = []
        for _ in range(count):
            if not self._free:
                page, _nothing = self._cached.popitem(last=False)
                self._forget(page)
                self._free.append(page)
            page = self._free.pop()
            self._pages[page].users = 1
            found.append(page)
        return found

    def match(self, tokens: Sequence[int], salt: bytes = b"") -> list[int]:
        """The pages that hold the longest known prefix of ``tokens``, which the caller uses from now on.

        The last token is never among them, as its logits are wanted. ``salt`` keeps prefixes apart that look the same
        (other adapters).
        """
        found = self.known(tokens, salt)
        for page in found:
            if self._pages[page].users == 0:
                del self._cached[page]
            self._pages[page].users += 1
        return found

    def known(self, tokens: Sequence[int], salt: bytes = b"") -> list[int]:
        """The pages that ``match`` would give."""
        found: list[int] = []
        key = salt
        for start in range(0, len(tokens) - self.page_size, self.page_size) if self.caching else ():
            own = tuple(tokens[start : start + self.page_size])
            key = _key(key, own)
            page = self._by_key.get(key)
            if page is None or self._pages[page].tokens != own:
                break
            found.append(page)
        return found

    def publish(self, pages: Sequence[int], tokens: Sequence[int], done: int, salt: bytes = b"") -> None:
        """Lets full pages be found: ``tokens`` are those that the sequence's ``pages`` hold, from the first on.

        ``done`` is how many pages were published before. A prefix that another page holds already keeps that page.
        """
        if not self.caching:
            return
        size = self.page_size
        key = self._pages[pages[done - 1]].key if done else salt
        for k in range(done, len(tokens) // size):
            own = tuple(tokens[k * size : (k + 1) * size])
            if not key and k:  # the page before is not to be found, for another one holds its prefix
                key = self._key_of(tokens, k, salt)
            key = _key(key, own)
            if key not in self._by_key:
                page = self._pages[pages[k]]
                page.key, page.tokens = key, own
                self._by_key[key] = pages[k]

    def release(self, pages: Sequence[int]) -> None:
        """The caller uses these pages no more. Raises UsageError for a page that nobody uses."""
        for page in reversed(pages):  # the end of a prefix is forgotten before its beginning
            p = self._pages[page]
            if p.users < 1:
                raise UsageError(f"page {page} is released, but nobody uses it")
            p.users -= 1
            if p.users == 0 and p.key:
                self._cached[page] = None
            elif p.users == 0:
                self._free.append(page)

    def forget_prefixes(self) -> None:
        """Forgets what unused pages hold, and lets no used page be found: the next prompts are computed anew."""
        for page in range(self.count):
            self._forget(page)
        self._free += self._cached
        self._cached.clear()

    def _forget(self, page: int) -> None:
        p = self._pages[page]
        if p.key:
            del self._by_key[p.key]
        p.key, p.tokens = b"", ()

    def _key_of(self, tokens: Sequence[int], pages: int, salt: bytes) -> bytes:
        key = salt
        for k in range(pages):
            key = _key(key, tokens[k * self.page_size : (k + 1) * self.page_size])
        return key

    # -------------------------------------------------------------------------------------------------- checking

    def check(self, owners: Sequence[Sequence[int]]) -> None:
        """Raises AssertionError unless the counts agree with the pages that ``owners`` have: for tests."""
        users = [0] * self.count
        for own in owners:
            assert len(set(own)) == len(own), f"a page twice: {own}"
            for page in own:
                users[page] += 1
        assert users == [p.users for p in self._pages]
        unused = sorted([*self._free, *self._cached])
        assert unused == [k for k, n in enumerate(users) if n == 0]
        assert {k: p.key for k, p in enumerate(self._pages) if p.key} == {v: k for k, v in self._by_key.items()}


def _key(before: bytes, tokens: Sequence[int]) -> bytes:
    """A hash of a page's tokens and of the prefix before it."""
    return hashlib.blake2b(before + array("q", tokens).tobytes(), digest_size=16).digest()
