"""The results of the live panel as Dash components: React renders every string as text, never as markup."""

from collections.abc import Sequence
from typing import Any

from dash import html

from ot_lens.explorer.live import Answer, Asked, LiveModel, TokenScore
from ot_lens.plots.style import Mark
from ot_lens.report.numbers import cell


def attributes(**named: str) -> dict[str, Any]:
    """Attributes with hyphens in their names (`aria-`, `data-`) as keyword arguments of a component."""
    return {name.replace("_", "-"): value for name, value in named.items()}


def token_table(live: LiveModel, prompt: str, asked: Asked) -> Any:
    """Next-token probabilities, refusal score and KL, one column per edit."""
    tokens, refusing, columns = live.next_tokens(prompt, asked)
    marks = live.marks(asked)
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
    return html.Tr([html.Th(name, scope="row"), *map(_value, values)])


def answer_cards(live: LiveModel, prompt: str, asked: Asked) -> Any:
    """The answers side by side."""
    return html.Div([*map(_answer, live.answers(prompt, asked), live.marks(asked))], className="answers")


def _answer(answer: Answer, mark: Mark) -> Any:
    verdict = "refuses" if answer.refuses else "no refusal phrase"
    return html.Article(
        [
            html.H3(_swatch(mark)),
            html.Blockquote(answer.text or "(an empty answer)"),
            html.P(verdict + ("; cut off at the token budget" if answer.truncated else ""), className="said"),
            _token_by_token(answer.tokens, mark),
        ],
        **attributes(data_refuses=str(answer.refuses).lower()),
    )


def _token_by_token(tokens: Sequence[TokenScore], mark: Mark) -> Any:
    """How likely each token is under the edit and without it, and the refusal score before it."""
    names = ("token", "log-probability here", "without edits", "refusal score before it")
    rows = [
        html.Tr(
            [
                html.Th(html.Code(one.token), scope="row"),
                *map(_value, (one.log_probability, one.unedited, one.score)),
            ]
        )
        for one in tokens
    ]
    table = html.Table(
        [
            html.Caption(f"{mark.label}, in nats"),
            html.Thead(html.Tr([html.Th(name, scope="col") for name in names])),
            html.Tbody(rows),
        ]
    )
    return html.Details([html.Summary("Token by token"), html.Div(table, className="scroll", tabIndex="0")])


def _value(value: float | None) -> Any:
    return html.Td(cell(float("nan") if value is None else value).text)


def trouble(text: str) -> Any:
    """Why there is no result."""
    return html.P(text, className="missing")
