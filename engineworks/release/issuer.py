"""Signs the statements of releases: every change of a champion, rollbacks included, gets the next number."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime

from engineworks.engines.signing import SIGNING_KEY, TRUSTED_KEYS, Signer, Trust, read_signer, read_trust
from engineworks.engines.statements import KnownStatements, Statement, Statements, read_known_statements
from engineworks.engines.strict_json import typed
from engineworks.errors import InputError, TrustError
from engineworks.tracking.aliases import Slot
from engineworks.tracking.registry import Issue


@dataclass(frozen=True)
class Issuer:
    """Issues the statements of one recipe's releases, signed if there is a key."""

    recipe: str
    signer: Signer | None
    trust: Trust
    known: KnownStatements

    def promotion(self, slot: Slot, engine: str) -> Issue:
        """Return what states that the engine (sha256), which passed here, is champion of the slot."""

        def issue(statements: Statements | None, tagged: str) -> Statement | None:
            if tagged != engine:
                raise TrustError(
                    f"a version of '{slot.model}' is tagged as engine {tagged[:12]}…, this build made {engine[:12]}…",
                    hint="its tag was altered: delete the version in MLflow, and release again",
                )
            return self._next(slot, statements, engine)

        return issue

    def rollback(self, slot: Slot) -> Issue:
        """Return what states that an earlier champion of the slot is champion again. Where keys are required, it must
        have been released under one of them: a tag alone gets no signature."""

        def issue(statements: Statements | None, tagged: str) -> Statement | None:
            if self.trust.required:
                self._check_newest(slot, statements)
                earlier = [s for s in statements.statements if s.engine == tagged] if statements else []
                if not earlier:
                    raise TrustError(
                        f"{slot.alias('champion')}: no statement says that engine {tagged[:12]}… was released",
                        hint="nothing was changed; release it again",
                    )
                self.trust.check(earlier[-1].to_json(), earlier[-1].name)
            return self._next(slot, statements, tagged)

        return issue

    def remember(self, statements: Statements | None, slot: Slot) -> None:
        """Let this host refuse older statements of the slot from now on."""
        if statements is not None and self.trust.required:
            self.known.accept(statements, f"registered model '{slot.model}'")

    def _next(self, slot: Slot, statements: Statements | None, engine: str) -> Statement | None:
        role = (slot.model, slot.precision, slot.target)
        before = statements.newest if statements else None
        if self.trust.required:
            self._check_newest(slot, statements)
            if statements is None:  # the registered model was deleted: its numbers go on
                before = self.known.newest(role)
        if statements is not None and before is not None and self._fits(before, engine):
            return None
        unsigned = Statement(
            1, slot.model, self.recipe, slot.precision, slot.target, engine, "pass",
            before.number + 1 if before else 1, before.digest if before else None,
            datetime.now(UTC).isoformat(timespec="seconds"),
        )  # fmt: skip
        document = unsigned.to_json()
        return typed(Statement, self.signer.sign(document) if self.signer else document, unsigned.name)

    def _check_newest(self, slot: Slot, statements: Statements | None) -> None:
        """Raises `TrustError` where this host has seen a newer statement than the registry has."""
        if statements is not None:
            self.known.check(statements, f"registered model '{slot.model}'")

    def _fits(self, statement: Statement, engine: str) -> bool:
        """Whether the statement says so already, under a key as good as this one."""
        signed_by = statement.signature.key_id if statement.signature else ""
        known = signed_by in self.trust.keys if self.trust.required else bool(signed_by) or self.signer is None
        return known and (statement.engine, statement.recipe) == (engine, self.recipe)


def read_issuer(recipe: str) -> Issuer:
    """Return the issuer by the environment. Raises `InputError` where keys are required and this host has none of
    them."""
    signer, trust = read_signer(), read_trust()
    if trust.required and signer is None:
        raise InputError(
            f"{TRUSTED_KEYS} asks for signed releases, and {SIGNING_KEY} is not set",
            hint="run this where the signing key is; nothing was changed",
        )
    if trust.required and signer is not None and signer.key_id not in trust.keys:
        raise InputError(
            f"{SIGNING_KEY} is the key {signer.key_id}, which {TRUSTED_KEYS} does not name",
            hint="its releases would be refused; nothing was changed",
        )
    return Issuer(recipe, signer, trust, read_known_statements())
