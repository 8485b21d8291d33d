"""How pages look, on telephones and wide screens, by day and by night."""

_COLOURS = {  # of lines: by day, by night
    0: ("#2f6fde", "#7fb0ff"),
    1: ("#c8701a", "#f0a860"),
    2: ("#23875a", "#5fd0a0"),
    3: ("#b0417f", "#ef8fc4"),
    4: ("#7a6a55", "#c9b79d"),
    5: ("#6f5bd0", "#b3a4ff"),
}


def _variables(night: bool) -> str:
    return " ".join(f"--c{i}: {pair[night]};" for i, pair in _COLOURS.items())


_OF_LINES = "\n".join(
    f".l{i} {{ stroke: var(--c{i}); }} .d{i} {{ fill: var(--c{i}); }} .b{i} {{ background: var(--c{i}); }}"
    for i in _COLOURS
)

STYLE = (
    f"""
:root {{ color-scheme: light dark; --ink: #1c2430; --soft: #556373; --line: #d8dee6; --card: #ffffff; --page: #f4f6f9;
  --link: #1f5fc4; --hit: #2f6fde; --miss: #e07a1f; {_variables(False)} }}
@media (prefers-color-scheme: dark) {{
  :root {{ --ink: #e6ebf2; --soft: #a3b0bf; --line: #333d4a; --card: #1b222c; --page: #12171e;
  --link: #8ab4ff; --hit: #5b95f5; --miss: #e88a3a; {_variables(True)} }} }}
{_OF_LINES}
* {{ box-sizing: border-box; }}
"""
    + """
body { font: 15px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--page); margin: 0; }
main { max-width: 1240px; margin: 0 auto; padding: 28px 20px 60px; }
main.wide { max-width: 1680px; } main > p, section > p { max-width: 100ch; }
h1 { font-size: 26px; line-height: 1.25; margin: 0 0 6px; overflow-wrap: anywhere; }
h2 { font-size: 19px; margin: 34px 0 8px; scroll-margin-top: 12px; }
p { margin: 0 0 12px; color: var(--soft); overflow-wrap: anywhere; }
a { color: var(--link); }
nav { display: flex; flex-wrap: wrap; gap: 6px 18px; margin-bottom: 16px; }
.row { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(340px, 100%), 1fr)); gap: 14px; }
.card.broad { margin-top: 14px; } p + .card.broad { margin-top: 0; }
.row > *, .pairs > * { min-width: 0; }
.card { background: var(--card); border: 1px solid var(--line); border-radius: 8px; padding: 12px; margin: 0;
  overflow-x: auto; }
.title { color: var(--ink); font-size: 14px; font-weight: 600; padding: 0 0 6px; }
.empty { margin: 18px 0; text-align: center; }
table { border-collapse: collapse; width: 100%; } td, th { padding: 4px 8px; text-align: left; vertical-align: top; }
td:first-child { overflow-wrap: break-word; }
tr + tr td, tbody tr td { border-top: 1px solid var(--line); }
td.n, th.n { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap; }
th { font-weight: 600; font-size: 13px; color: var(--soft); vertical-align: bottom; }
table.confusion { width: auto; } table.confusion td { text-align: center; font-variant-numeric: tabular-nums; }
table.confusion th { max-width: 11em; overflow-wrap: break-word; }
td.hit { background: color-mix(in srgb, var(--hit) calc(var(--s) * 55%), transparent); }
td.miss { background: color-mix(in srgb, var(--miss) calc(var(--s) * 75%), transparent); }
img { max-width: 100%; height: auto; border-radius: 4px; display: block; margin: 0 auto; }
figcaption { color: var(--soft); font-size: 13px; padding-top: 6px; overflow-wrap: anywhere; }
.pairs { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(700px, 100%), 1fr)); gap: 14px; }
.pair { display: grid; grid-template-columns: 1fr 1fr; gap: 10px; }
.pair b { display: block; font-size: 14px; padding-bottom: 4px; } .pair img, .whole img { width: 100%; }
.chart { container-type: inline-size; }
svg { width: 100%; max-width: 640px; height: auto; display: block; margin: 0 auto; }
svg text { fill: var(--soft); font: 13px system-ui, sans-serif; }
@container (min-width: 520px) { svg text { font-size: 11px; } }
@container (max-width: 360px) { svg text { font-size: 14.5px; } }
.grid { stroke: var(--line); } .mark { stroke: var(--soft); stroke-dasharray: 3 4; }
.faint { opacity: 0.5; } polyline.faint { stroke-width: 1; }
polyline { fill: none; stroke-width: 2; stroke-linejoin: round; }
.legend { display: flex; flex-wrap: wrap; gap: 2px 14px; font-size: 13px; color: var(--soft); padding-bottom: 4px; }
.legend i { display: inline-block; width: 11px; height: 11px; border-radius: 2px; margin-right: 5px; }
.bars { list-style: none; margin: 0; padding: 0; display: grid; gap: 12px; }
.bars b { display: block; font-weight: 600; overflow-wrap: anywhere; } .bars span { color: var(--soft); }
.bars div { display: flex; align-items: center; height: 14px; background: var(--page); border-radius: 4px; }
.bars i { height: 14px; background: var(--c0); border-radius: 4px; }
.bars s { height: 0; border-top: 2px solid var(--soft); }
.tiles { display: grid; grid-template-columns: repeat(auto-fill, minmax(270px, 1fr)); gap: 14px; }
.beside img { width: 100%; aspect-ratio: 4 / 3; object-fit: contain; background: var(--page); }
.beside b { display: block; color: var(--ink); font-size: 14px; font-weight: 600; padding-left: 9px;
  border-width: 0 0 0 5px; }
.filter { padding-top: 4px; } .filter legend { padding: 0 6px; color: var(--soft); }
.filter div { display: flex; flex-wrap: wrap; gap: 4px 18px; }
.filter label { cursor: pointer; overflow-wrap: anywhere; }
.filter small { color: var(--soft); font-size: 13px; } .filter input { accent-color: var(--link); }
.full { border-style: solid; } .dashed { border-style: dashed; }
dl { margin: 0; display: grid; grid-template-columns: minmax(9em, max-content) minmax(0, 1fr); gap: 8px 16px; }
dt { color: var(--soft); } dd { margin: 0; overflow-wrap: anywhere; }
code { font: 13px/1.5 ui-monospace, monospace; background: var(--page); border-radius: 4px; padding: 1px 5px;
  overflow-wrap: anywhere; }
summary { cursor: pointer; color: var(--link); }
pre { font: 12.5px/1.5 ui-monospace, monospace; white-space: pre-wrap; overflow-wrap: anywhere; margin: 10px 0 0; }
@media (max-width: 600px) { main { padding: 20px 12px 40px; } .pair { grid-template-columns: 1fr; }
  .broad dl { grid-template-columns: minmax(0, 1fr); gap: 2px; } .broad dd { padding-bottom: 8px; }
  .card { padding: 10px; } td, th { padding: 4px 5px; font-size: 13px; } }
"""
)
