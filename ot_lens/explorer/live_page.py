"""The results of the live panel as Dash components: React renders every string as text, never as markup."""

from collections.abc import Sequence
from typing import Any

from dash import html

from ot_lens.explorer.live import Answer, LiveModel
from ot_lens.explorer.runs import split_key
from ot_lens.explorer.state import State
from ot_lens.plots import method_mark
from ot_lens.plots.style import BASELINE, Mark
from ot_lens.report.numbers import cell


def attributes(**named: str) -> dict[str, Any]:
    """Attributes with hyphens in their names (`aria-`, `data-`) as keyword arguments of a component."""
    return {name.replace("_", "-"): value for name, value in named.items()}


def _marks(state: State) -> list[Mark]:
    """The marks of the unedited model and of both edits."""
    return [BASELINE, *(method_mark(*split_key(key)) for key in (state.ot, state.by))]


def token_table(live: LiveModel, prompt: str, state: State) -> Any:
    """Next-token probabilities, refusal score and KL, one column per edit."""
    tokens, refusing, columns = live.next_tokens(prompt, state)
    marks = _marks(state)
    rows = []
    for i, (token, refusal) in enumerate(zip(tokens, refusing, strict=True)):
        head = html.Th([html.Code(token), html.Small("refusal") if refusal else None], scope="row")
        shares = [column.probabilities[i] for column in columns]
        rows.append(html.Tr([head, *map(_bar, shares, marks)]))
    names = [html.Th(_swatch(mark), scope="col") for mark in marks]
    numbers = [
        _numbers("refusal score (nats)", [column.score for column in columns]),
        _numbers("KL from unedited (nats)", [column.kl for column in columns]),
    ]
    table = html.Table(
        [
            html.Caption("Next token, at the end of the prompt"),
            html.Thead(html.Tr([html.Th("token", scope="col"), *names])),
            html.Tbody(rows),
            html.Tfoot(numbers),
        ]
    )
    return html.Div(table, className="scroll")


def _swatch(mark: Mark) -> list[Any]:
    return [html.Span(className="swatch", style={"background": mark.color}), mark.label]


def _bar(share: float, mark: Mark) -> Any:
    text = f"{100 * share:.1f} %" if share >= 5e-4 else "< 0.1 %"
    fill = html.Span(className="fill", style={"width": f"{100 * share:.2f}%", "background": mark.color})
    return html.Td([html.Span(fill, className="bar"), html.Span(text, className="share")])


def _numbers(name: str, values: Sequence[float | None]) -> Any:
    texts = [cell(float("nan") if value is None else value).text for value in values]
    return html.Tr([html.Th(name, scope="row"), *map(html.Td, texts)])


def answer_cards(live: LiveModel, prompt: str, state: State) -> Any:
    """The answers side by side."""
    return html.Div([*map(_answer, live.answers(prompt, state), _marks(state))], className="answers")


def _answer(answer: Answer, mark: Mark) -> Any:
    verdict = "refuses" if answer.refuses else "no refusal phrase"
    return html.Article(
        [
            html.H3(_swatch(mark)),
            html.Blockquote(answer.text or "(an empty answer)"),
            html.P(verdict + ("; cut off at the token budget" if answer.truncated else ""), className="said"),
        ],
        **attributes(data_refuses=str(answer.refuses).lower()),
    )


def trouble(text: str) -> Any:
    """Why there is no result."""
    return html.P(text, className="missing")
