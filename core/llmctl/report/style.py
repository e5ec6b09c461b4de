"""The style sheet of reports, with a light and a dark mode."""

TONES = (
    ("#2563eb", "#60a5fa"),
    ("#dc2626", "#f87171"),
    ("#059669", "#34d399"),
    ("#9333ea", "#c084fc"),
    ("#d97706", "#fbbf24"),
    ("#0891b2", "#22d3ee"),
    ("#db2777", "#f472b6"),
    ("#4b5563", "#9ca3af"),
)
"""Colours of lines, on light and on dark ground."""


def _variables(index: int) -> str:
    return "".join(f"--t{number}:{pair[index]};" for number, pair in enumerate(TONES))


STYLE = (
    ":root{color-scheme:light dark;--ground:#fff;--text:#1f2937;--soft:#6b7280;--rule:#e5e7eb;--card:#f9fafb;"
    f"--good:#047857;--bad:#b91c1c;--warn:#92400e;{_variables(0)}}}\n"
    "@media(prefers-color-scheme:dark){:root{--ground:#111827;--text:#e5e7eb;--soft:#9ca3af;--rule:#374151;"
    f"--card:#1f2937;--good:#34d399;--bad:#f87171;--warn:#fbbf24;{_variables(1)}}}}}\n"
    + "".join(f".t{number}{{--tone:var(--t{number})}}" for number in range(len(TONES)))
    + """
*{box-sizing:border-box}
body{margin:0 auto;max-width:60rem;padding:1.25rem 1rem 3rem;background:var(--ground);color:var(--text);
font:16px/1.5 system-ui,-apple-system,"Segoe UI",Roboto,"Noto Sans","Noto Sans CJK SC",sans-serif}
h1{font-size:1.6rem;line-height:1.25;margin:0 0 .25rem;overflow-wrap:anywhere}
h2{font-size:1.15rem;margin:2.25rem 0 .75rem}
.soft{color:var(--soft)}
.lead{font-size:1.1rem;margin:.5rem 0 1rem}
.finished{color:var(--good)}.failed{color:var(--bad)}.running,.interrupted{color:var(--warn)}
.notice{border-left:4px solid;padding:.5rem .9rem;margin:1rem 0;background:var(--card)}
.notice p{margin:.3rem 0;color:var(--text);overflow-wrap:anywhere}
table{border-collapse:collapse;width:100%}
th,td{text-align:left;vertical-align:top;padding:.35rem .8rem .35rem 0;border-bottom:1px solid var(--rule);overflow-wrap:anywhere}
th{font-weight:600;color:var(--soft)}
td.number,th.number{text-align:right;font-variant-numeric:tabular-nums;white-space:nowrap}
.scroll{overflow-x:auto}
code,pre{font-family:ui-monospace,Menlo,Consolas,monospace;font-size:.875rem}
pre{background:var(--card);padding:.7rem .9rem;margin:.4rem 0;white-space:pre-wrap;overflow-wrap:anywhere;border-radius:.3rem}
.charts{display:grid;grid-template-columns:repeat(auto-fill,minmax(min(100%,24rem),1fr));gap:1.5rem}
.chart{margin:0;min-width:0;position:relative}.chart.wide{grid-column:1/-1}
.large{display:none}
@media(min-width:46rem){.large{display:block}.large+.small{display:none}}
figcaption{font-weight:600}
.chart svg{display:block;width:100%;height:auto}
.legend{font-size:.875rem;color:var(--soft)}
.key{display:inline-flex;align-items:center;gap:.4rem;margin-right:1rem}.chart .key svg{width:24px;height:8px}
svg text{fill:var(--soft);font-size:12px}
.grid{stroke:var(--rule);fill:none}
.line{stroke:var(--tone);fill:none;stroke-width:1.75;stroke-linejoin:round}
.dashed{stroke-dasharray:5 3}
.chart svg[role=img]{touch-action:pan-y}
.rule{stroke:var(--soft);stroke-width:1;fill:none}
.tip{position:absolute;pointer-events:none;background:var(--card);border:1px solid var(--rule);border-radius:.3rem;
padding:.3rem .6rem;font-size:.875rem;white-space:nowrap;box-shadow:0 1px 4px #0003}
.tip[hidden]{display:none}
.dot{fill:var(--tone)}.band{fill:var(--tone);opacity:.2}
.sample{border:1px solid var(--rule);border-radius:.4rem;padding:.2rem .9rem .7rem;margin:0 0 1rem}
.sample dt{font-size:.875rem;color:var(--soft);margin-top:.5rem}
.sample dd{margin:0;white-space:pre-wrap;overflow-wrap:anywhere;max-height:18rem;overflow-y:auto}
details{margin:.6rem 0}summary{cursor:pointer;font-weight:600}
"""
)
