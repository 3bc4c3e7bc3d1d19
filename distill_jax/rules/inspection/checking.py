"""Statistics of rules on a table and on a model's predictions.

All statistics of a rule are over the rows where it *fires*, that is, where some class or label
would violate it. Comparisons are crisp here, whatever widths the book gives them. Where a rule
refers to another view, the class that the view predicts is used, except for ``mean_violation``,
which uses the view's probabilities. In the rows of a ``Check``:

- ``fires``: the number of rows where the rule fires; ``coverage`` is their share of all rows.
- ``silent``: the number of rows where it does not fire but would for some value in place of a
  missing one.
- ``precision``: of the rows with a known label where it fires, the share whose label satisfies it.
- ``lift``: the precision divided by its expectation if each of these rows had the label of a row
  drawn at random from all labelled ones; 1 means that the rule is no better than the frequencies of
  the classes. It is exact, except for label sets with more than 64 different values, where 64 rows
  are drawn with a fixed seed.
- ``always_holds``: whether it fires on labelled rows, and all their labels satisfy it.
- ``mean_violation``: the mean violation under the model's probabilities.
- ``violated``: the number of rows whose predicted class (or set of labels with a logit above 0)
  violates the rule.
- ``contradicts_hard``: the share of the rows where the hard rules forbid every class that the rule
  allows. Exclusive classes only.
- ``head`` and ``body``: the shares of the gradient of the violation that reach the two sides of an
  implication: Σ |∂ violation / ∂ atom| over atoms and at most 256 rows, at the model's
  probabilities, or uniform ones without a model. Atoms are the probabilities of labels, and the
  soft comparisons (those with a width; the derivative is with respect to a shift by one width, and
  all of them count for the body). With exclusive classes and no widths, the body is known, and the
  whole gradient reaches the head. A label on both sides counts for both; a rule without ``=>`` is
  all head.

For pairs of rules: ``together`` is the number of rows where both fire, ``jaccard`` is that number
divided by the number of rows where either fires, and ``clash`` is the number of rows where both
fire and no class satisfies both (exclusive classes only).

In the summary: ``rules`` and ``rows`` are the numbers of both, ``covered`` is the share of rows
where any rule fires, ``rules_per_row`` the mean number of rules that fire on a row,
``hard_violated`` the number of rows whose prediction violates a hard rule, ``no_class_left`` the
number of rows where hard rules forbid every class (exclusive classes only), ``never_fire`` and
``always_hold`` the numbers of such rules, and ``silent`` the sum over rules.

References:
  van Krieken et al., `Analyzing Differentiable Fuzzy Logic Operators
  <https://arxiv.org/abs/2002.06100>`_, 2022, for the gradients of body and head.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from distill_jax import _checks
from distill_jax._arguments import checked
from distill_jax.rules.binding.book import Book, encode, encoded_rows
from distill_jax.rules.binding.schema import is_array
from distill_jax.rules.inspection import _sides
from distill_jax.rules.logic import _inputs, _predictions
from distill_jax.rules.logic._inputs import Views
from distill_jax.rules.logic.evaluation import fires, forbidden, violation

MOST_PAIRED = 2_000
"""With more rules than this, pairs are not computed."""
MOST_SETS = 64
"""Label sets that the lift averages over, at most."""
CHUNK = 1 << 22
"""The approximate size of the largest array per chunk of rows: 16 MiB in float32."""


@dataclasses.dataclass(frozen=True)
class Check:
    """The results of ``check``, as plain data that can be written as JSON.

    Attributes:
      rows: One mapping per rule. A value is None if it is undefined: without labels, without
        logits, or if the rule never fires.

        - ``rule``, ``text``, ``strength``: its name or formula, its text, its log-odds or "hard". A
          name is given as it is: one of a stranger may hold control characters, which ``text`` and
          the tables of ``report`` escape;
        - ``fires``, ``coverage``: on how many rows it fires, and on which share;
        - ``silent``: rows where it would fire for some value in place of a missing one;
        - ``precision``, ``lift``, ``always_holds``: how well it agrees with the labels;
        - ``mean_violation``, ``violated``: how far, and on how many rows, the model violates it;
        - ``contradicts_hard``: the share of rows where hard rules forbid all classes it allows;
        - ``head``, ``body``: the shares of its gradient that reach each side of the implication.

      pairs: The pairs of rules with the most clashes and the largest overlaps: ``rule``, ``other``,
        ``together``, ``jaccard``, ``clash``.
      summary: Statistics of the whole book.
    """

    rows: list[dict[str, Any]]
    pairs: list[dict[str, Any]]
    summary: dict[str, Any]


@checked
def check(
    book: Book,
    table: Any,
    *,
    labels: Any = None,
    where: Any = None,
    logits: Any = None,
    views: Views | None = None,
    most_pairs: int = 20,
) -> Check:
    """How often each rule fires on a table, agrees with the labels, and is violated by a model.

    The sums are computed on the device over chunks of rows: memory does not grow with rows times
    rules.

    Args:
      book: The rules.
      table: A table, or the columns from ``encode``, ``[batch, columns]``.
      labels: Integer classes ``[batch]``; for label sets 0 and 1, ``[batch, labels]``.
      where: Rows whose label is known, ``[batch]``, boolean; all by default.
      logits: A model's logits, ``[batch, classes]``.
      views: The model's logits on other views, ``[batch, classes]`` each, by name, if the rules use
        them.
      most_pairs: The largest number of pairs listed, for clashes and for overlaps each.

    Returns:
      A ``Check``: statistics per rule, per pair of rules, and of the whole book.

    Raises:
      ValueError: for shapes that do not match, labels out of range, or a missing view.

    Example:
      >>> from distill_jax.rules import Column, Schema, bind
      >>> schema = Schema((Column("age"),), ("well", "sick"))
      >>> book = bind("old: age > 60 => sick", schema)
      >>> found = check(book, {"age": [70, 65, 50, 40, None]}, labels=[1, 0, 0, 0, 1])
      >>> row = found.rows[0]
      >>> row["coverage"], row["precision"], f"{row['lift']:.2f}", row["silent"]
      (0.4, 0.5, '1.25', 1)
    """
    columns = _columns(book, table)
    rows, rules = len(columns), len(book)
    data: dict[str, Any] = {"columns": columns}
    if where is not None and labels is None:
        raise ValueError("where says which labels are known: give labels too, or leave where out")
    if book.schema.views or logits is not None or views is not None:
        _inputs.check_views(book, views)
        given = np.zeros((rows, len(book.schema.classes)), np.float32) if logits is None else logits
        _checks.shape((rows, len(book.schema.classes)), logits=given)
        own, _, of_views = _inputs.prepared(book, given, columns, views, name="logits")
        data["views"] = {name: np.asarray(z) for name, z in of_views.items()}
        data |= {} if logits is None else {"logits": np.asarray(own)}
    options: dict[str, Any] = {}
    if labels is not None:
        data["targets"], data["known"] = _targets(book, labels, where, rows)
        options["sets"], options["shares"] = _frequencies(book, data["targets"][data["known"]])
    paired = 2 <= rules <= MOST_PAIRED
    if paired and book.schema.exclusive:
        options["parts"] = _parts(book)
    sums = _summed(crisp(book), data, options, paired)
    summary = {"rules": rules, "rows": rows, **_summary(sums, rows)}
    sides = _sides.shares(book, data) if rows else None
    listed = [_row(book, i, sums, rows, sides) for i in range(rules)]
    summary |= {
        "never_fire": sum(row["fires"] == 0 for row in listed),
        "silent": int(sums["silent"].sum()),
        "always_hold": sum(bool(row["always_holds"]) for row in listed),
    }
    pairs = _pairs(book, sums, most_pairs) if paired else []
    return Check(listed, pairs, summary)


# Arguments


def _columns(book: Book, table: Any) -> np.ndarray:
    """The encoded columns of a table, or those that were given, ``[batch, columns]``."""
    return encoded_rows(book, table) if is_array(table) else encode(book, table)


def _targets(book: Book, labels: Any, where: Any, rows: int) -> tuple[np.ndarray, np.ndarray]:
    """Labels as 0 and 1, ``[batch, classes]``, and which rows have a known label, ``[batch]``."""
    labels = np.asarray(labels)
    known = np.ones(rows, bool) if where is None else np.asarray(where)
    _checks.boolean(where=known)
    _checks.shape((rows,), where=known)
    classes = len(book.schema.classes)
    if not book.schema.exclusive:
        _checks.shape((rows, classes), labels=labels)
        if not np.isin(labels[known], (0, 1)).all():
            raise ValueError("labels of label sets must be 0 or 1 in the rows that count")
        return np.where(known[:, None], labels, 0).astype(np.float32), known
    _checks.integer(labels=labels)
    _checks.shape((rows,), labels=labels)
    _checks.labels_below(classes, labels=labels[known])
    safe = np.where(known, labels, 0)
    return np.eye(classes, dtype=np.float32)[safe], known


def _frequencies(book: Book, targets: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The distribution of labels: targets ``[values, classes]``, and their shares ``[values]``."""
    if not len(targets):
        return targets[:1], np.ones(len(targets[:1]), np.float32)
    if book.schema.exclusive:  # truth is linear in probabilities, so their mean is enough
        return targets.mean(0, keepdims=True), np.ones(1, np.float32)
    sets, counts = np.unique(targets, axis=0, return_counts=True)
    if len(sets) > MOST_SETS:
        drawn = np.random.default_rng(0).choice(len(targets), MOST_SETS, replace=False)
        sets, counts = np.unique(targets[drawn], axis=0, return_counts=True)
    return sets, (counts / counts.sum()).astype(np.float32)


def crisp(book: Book) -> Book:
    """The book with crisp comparisons, without widths."""
    circuit = dataclasses.replace(book.circuit, width=jnp.zeros_like(book.circuit.width))
    info = dataclasses.replace(book.info, soft=False)
    return dataclasses.replace(book, circuit=circuit, info=info)


def _parts(book: Book) -> dict[str, Any]:
    """The ways in which each rule can forbid classes.

    The pieces of a rule may apply together, so each subset of up to four pieces is one way. For a
    rule with more pieces, each piece is one way, whether or not others apply.

    Returns:
      ``inside`` and ``outside``: the pieces that apply and that do not, ``[ways, 4]``, padded with
      the number of pieces; ``table``: the classes that are forbidden, ``[ways, classes]``;
      ``owner``: the rule, ``[ways]``.
    """
    pieces = {name: np.asarray(getattr(book.pieces, name)) for name in ("rule", "seen", "table")}
    groups: dict[Any, list[int]] = {}
    for i, (rule, seen) in enumerate(zip(pieces["rule"], pieces["seen"].tolist(), strict=True)):
        groups.setdefault((int(rule), *seen), []).append(i)
    ways = []  # owner, pieces that apply, pieces that do not
    for (rule, *_), group in groups.items():
        if len(group) > 4:
            ways += [(rule, (i,), ()) for i in group]
            continue
        for size in range(1, len(group) + 1):
            for chosen in itertools.combinations(group, size):
                ways.append((rule, chosen, tuple(i for i in group if i not in chosen)))
    total = len(pieces["rule"])  # this index is padding
    inside = np.full((len(ways), 4), total)
    outside = np.full((len(ways), 4), total)
    table = np.zeros((len(ways), len(book.schema.classes)), bool)
    for i, (_, chosen, others) in enumerate(ways):
        inside[i, : len(chosen)], outside[i, : len(others)] = chosen, others
        table[i] = pieces["table"][list(chosen)].any(0)
    owner = np.asarray([rule for rule, _, _ in ways], int)
    return {"inside": inside, "outside": outside, "table": table, "owner": owner}


# Sums over rows


def _summed(
    book: Book, data: dict[str, Any], options: dict[str, Any], paired: bool
) -> dict[str, Any]:
    """Sums over all rows, in float64, from chunks of equal size."""
    rows = len(data["columns"])
    widest = max(
        book.circuit.number_of_nodes,
        len(book),
        book.pieces.guard.shape[0],
        len(options["parts"]["owner"]) if "parts" in options else 0,
    )
    chunk = min(1 << max(3, (rows - 1).bit_length()), max(64, CHUNK // max(widest, 1)))
    total: dict[str, Any] = {}
    for start in range(0, max(rows, 1), chunk):
        piece = jax.tree.map(lambda x, s=start: _padded(np.asarray(x)[s : s + chunk], chunk), data)
        valid = np.arange(start, start + chunk) < rows
        found = _sums(book, piece, valid, options, paired)
        for name, x in jax.device_get(found).items():
            total[name] = total.get(name, 0.0) + np.asarray(x, np.float64)
    return total


def _padded(x: np.ndarray, rows: int) -> np.ndarray:
    return np.pad(x, [(0, rows - len(x))] + [(0, 0)] * (x.ndim - 1))


@functools.partial(jax.jit, static_argnames="paired")
def _sums(
    book: Book, data: dict[str, Any], valid: Any, options: dict[str, Any], paired: bool
) -> dict[str, Any]:
    """Sums over the valid rows of one chunk, per rule ``[rules]``, per pair, and in total."""
    columns, views = data["columns"], data.get("views", {})
    fired = fires(book, columns) & valid[:, None]
    possible = fires(book, columns, unknown=True) & valid[:, None]
    out: dict[str, Any] = {
        "fires": fired.sum(0),
        "silent": (possible & ~fired).sum(0),
        "covered": fired.any(1).sum(),
    }
    classes = len(book.schema.classes)
    shown = {name: _predictions.predicted(book, x) for name, x in views.items()}
    as_logits = {name: _predictions.certain(book, x) for name, x in shown.items()}
    broken = functools.partial(violation, book, columns, views=as_logits)
    if "targets" in data:
        counts = fired & data["known"][:, None]
        wrong = broken(data["targets"]) > 0.5

        def expected(pair: Any) -> Any:
            target, share = pair
            at = broken(jnp.broadcast_to(target[None], (len(valid), classes)))
            return share * jnp.where(counts, at, 0.0).sum(0)

        drawn = jax.lax.map(expected, (options["sets"], options["shares"])).sum(0)
        out |= {"labelled": counts.sum(0), "wrong": (counts & wrong).sum(0), "drawn_wrong": drawn}
    if "logits" in data:
        logits = data["logits"]
        mean = violation(book, columns, _predictions.probabilities(book, logits), views=views)
        predicted = _predictions.predicted(book, logits).astype(jnp.float32)
        violated = fired & (broken(predicted) > 0.5)
        out |= {
            "mean_violation": jnp.where(fired, mean, 0.0).sum(0),
            "violated": violated.sum(0),
            "hard_violated": (violated & book.hard[None]).any(1).sum(),
        }
    if book.schema.exclusive:
        allowed = ~forbidden(book, columns) & valid[:, None]
        left = allowed.sum(1, keepdims=True, dtype=jnp.float32)
        # The violation is linear in the probabilities: this is the number of allowed classes that
        # violate the rule.
        violating = broken(allowed.astype(jnp.float32))
        out["contradicts"] = (fired & (violating > left - 0.5)).sum(0)
        out["no_class_left"] = (valid & ~allowed.any(1)).sum()
    if paired:
        each = fired.astype(jnp.float32)
        out["together"] = each.T @ each
    if "parts" in options:
        out["clash"] = _clashes(book, columns, valid, shown, options["parts"])
    return out


def _clashes(book: Book, columns: Any, valid: Any, shown: Any, parts: dict[str, Any]) -> Any:
    """For each pair of rules, the number of rows where they forbid all classes together."""
    pieces = book.pieces
    applies = fires(dataclasses.replace(book, fires=pieces.guard), columns) & valid[:, None]
    padding = jnp.ones((len(valid), 1), bool)
    for v, name in enumerate(book.schema.views):
        applies &= jnp.concatenate([shown[name], padding], 1)[:, pieces.seen[:, v]]
    inside = jnp.concatenate([applies, padding], 1)[:, parts["inside"]].all(-1)
    outside = jnp.concatenate([applies, ~padding], 1)[:, parts["outside"]].any(-1)
    way = (inside & ~outside).astype(jnp.float32)
    table = parts["table"].astype(jnp.float32)
    classes = table.shape[1]
    either = table.sum(1)[:, None] + table.sum(1)[None] - table @ table.T
    owner = jax.nn.one_hot(parts["owner"], len(book))
    return owner.T @ jnp.where(either > classes - 0.5, way.T @ way, 0.0) @ owner


# Plain data


def _row(book: Book, i: int, sums: dict[str, Any], rows: int, sides: Any) -> dict[str, Any]:
    """The statistics of rule ``i``."""

    def ratio(a: Any, b: Any) -> float | None:
        return float(a / b) if b else None

    def of(name: str, by: Any) -> float | None:
        return ratio(sums[name][i], by) if name in sums else None

    rule, fired = book.rules[i], int(sums["fires"][i])
    labelled = sums["labelled"][i] if "labelled" in sums else 0
    wrong, drawn = of("wrong", labelled), of("drawn_wrong", labelled)
    precision = None if wrong is None else 1.0 - wrong
    lift = None if precision is None or drawn is None else ratio(precision, 1.0 - drawn)
    head, body = (None, None) if sides is None else sides[i]
    return {
        "rule": rule.name or str(rule.formula),
        "text": str(rule),
        "strength": _strength(book, i),
        "fires": fired,
        "coverage": ratio(fired, rows) or 0.0,
        "silent": int(sums["silent"][i]),
        "precision": precision,
        "lift": lift,
        "always_holds": None if precision is None else precision == 1.0,
        "mean_violation": of("mean_violation", fired),
        "violated": int(sums["violated"][i]) if "violated" in sums else None,
        "contradicts_hard": of("contradicts", fired),
        "head": head,
        "body": body,
    }


def _strength(book: Book, i: int) -> float | str:
    """A rule's log-odds, or "hard"."""
    return "hard" if bool(book.hard[i]) else float(book.strengths[i])


def _summary(sums: dict[str, Any], rows: int) -> dict[str, Any]:
    return {
        "covered": float(sums["covered"] / rows) if rows else 0.0,
        "rules_per_row": float(sums["fires"].sum() / rows) if rows else 0.0,
        "hard_violated": int(sums["hard_violated"]) if "hard_violated" in sums else None,
        "no_class_left": int(sums["no_class_left"]) if "no_class_left" in sums else None,
    }


def _pairs(book: Book, sums: dict[str, Any], most: int) -> list[dict[str, Any]]:
    first, second = np.triu_indices(len(book), 1)
    together = sums["together"][first, second]
    either = sums["fires"][first] + sums["fires"][second] - together
    jaccard = together / np.maximum(either, 1)
    clash = sums["clash"][first, second] if "clash" in sums else np.zeros(len(first))
    clash = np.minimum(clash, together)
    wanted = dict.fromkeys(
        int(i)
        for values in (clash, jaccard)
        for i in np.argsort(-values, kind="stable")[:most]
        if values[i] > 0
    )
    names = book.names
    return [
        {
            "rule": names[first[i]],
            "other": names[second[i]],
            "together": int(together[i]),
            "jaccard": float(jaccard[i]),
            "clash": int(clash[i]) if "clash" in sums else None,
        }
        for i in wanted
    ]
