"""The report's style sheet: light and dark, wide and narrow."""

STYLE = """
:root { color-scheme: light dark; --page: #f6f7f9; --card: #fff; --text: #1b1f26; --soft: #5c6572; --line: #e1e5ea;
  --one: #2563c9; --two: #c4590c; --peer: #a4adb9; --good: #17713b; --bad: #b3361f; --code: #eef1f5; }
@media (prefers-color-scheme: dark) { :root { --page: #12151a; --card: #1a1e25; --text: #e6e9ee; --soft: #9aa4b2;
  --line: #2d333d; --one: #6ea3f5; --two: #f0995a; --peer: #6a7483; --good: #62c98a; --bad: #f2836d;
  --code: #242a33; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--page); color: var(--text); font: 15px/1.5 system-ui, "Segoe UI", Roboto,
  "Helvetica Neue", Arial, sans-serif; font-variant-numeric: tabular-nums; }
main { max-width: 1160px; margin: 0 auto; padding: 32px 20px 64px; }
h1 { font-size: 28px; line-height: 1.2; margin: 0 0 6px; letter-spacing: -0.01em; }
h2 { font-size: 20px; margin: 44px 0 4px; }
h3 { font-size: 15px; margin: 0 0 2px; }
p { margin: 4px 0 12px; max-width: 75ch; }
header p, .note { color: var(--soft); }
.note { font-size: 13.5px; } .card .note { margin: 10px 0 0; max-width: none; font-size: 13px; }
nav { display: flex; flex-wrap: wrap; gap: 4px 18px; margin: 14px 0; }
a { color: var(--one); text-decoration: none; } a:hover { text-decoration: underline; }
code { font: 12.5px/1.45 ui-monospace, "SF Mono", Menlo, Consolas, monospace; background: var(--code);
  padding: 1px 5px;
  border-radius: 4px; overflow-wrap: anywhere; }
.tiles { display: flex; flex-wrap: wrap; gap: 12px; margin: 18px 0 0; }
.tiles div { background: var(--card); border: 1px solid var(--line); border-radius: 10px; padding: 10px 18px;
  flex: 1 1 120px; }
.tiles b { display: block; font-size: 24px; line-height: 1.25; } .tiles span { color: var(--soft); font-size: 13px; }
.card { background: var(--card); border: 1px solid var(--line); border-radius: 10px; padding: 16px 20px;
  margin: 14px 0; }
.good { color: var(--good); } .bad { color: var(--bad); } .none { color: var(--soft); }
table { border-collapse: collapse; width: 100%; font-size: 14px; }
th { text-align: left; font-weight: 600; font-size: 12.5px; color: var(--soft); padding: 6px 14px 6px 0;
  vertical-align: bottom; }
td { border-top: 1px solid var(--line); padding: 7px 14px 7px 0; vertical-align: top; }
th:last-child, td:last-child { padding-right: 0; }
td.n, th.n { text-align: right; white-space: nowrap; }
td small { display: block; color: var(--soft); font-size: 12.5px; }
td ul { margin: 0; padding: 0; list-style: none; }
tr.group th { color: var(--text); font-size: 14px; padding: 22px 0 6px; border-top: 0; }
tr.group span { font-weight: 400; color: var(--soft); display: block; font-size: 13px; }
tr.peer td:first-child { color: var(--soft); } .wide td:first-child { min-width: 190px; }
details { font-size: 13px; font-weight: 400; color: var(--soft); } summary { cursor: pointer; width: fit-content; }
dl { display: grid; grid-template-columns: max-content 1fr; gap: 2px 14px; margin: 6px 0; }
dt { color: var(--soft); } dd { margin: 0; overflow-wrap: anywhere; }
.plots { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 380px), 1fr)); gap: 8px 28px; }
figure { margin: 8px 0 0; max-width: 540px; } figcaption { font-weight: 600; font-size: 14px; }
svg { display: block; width: 100%; height: auto; overflow: visible; }
svg .grid { stroke: var(--line); } svg .tick { fill: var(--soft); font-size: 12px; }
svg polyline { fill: none; stroke-width: 2; stroke-linejoin: round; }
polyline.s1 { stroke: var(--one); } polyline.s2 { stroke: var(--two); }
polyline.sfit, polyline.slevel { stroke: var(--soft); stroke-width: 1.5; stroke-dasharray: 5 4; }
circle.s1 { fill: var(--one); } circle.s2 { fill: var(--two); } circle { stroke: var(--card); stroke-width: 1.5; }
.legend { list-style: none; display: flex; flex-wrap: wrap; gap: 2px 18px; margin: 2px 0 4px; padding: 0;
  font-size: 13px;
  color: var(--soft); }
.legend li::before { content: ""; display: inline-block; width: 14px; margin-right: 7px; vertical-align: middle;
  border-top: 3px solid var(--one); }
.legend .s2::before { border-color: var(--two); } .legend .speer::before { border-color: var(--peer); }
.legend .sfit::before, .legend .slevel::before { border-top: 2px dashed var(--soft); }
.legend .smodelled::before { border-top: 8px solid color-mix(in srgb, var(--one) 42%, var(--card)); }
.legend .sgoal::before { width: 0; height: 12px; border-top: 0; border-left: 3px solid var(--two); }
.legend.dots li::before, .points li::before { width: 10px; height: 10px; border: 0; border-radius: 50%;
  background: var(--one); }
.legend.dots .speer::before, .points .speer::before { background: var(--peer); }
.legend.dots .smodelled::before, .points .smodelled::before { background: none; border: 2px solid var(--one); }
.points { list-style: none; margin: 2px 0 12px; padding: 0; font-size: 13px; }
.points li { padding-left: 38px; text-indent: -38px; } .points b { text-indent: 0; }
.points li::before { content: ""; display: inline-block; margin-right: 6px; }
.points span { color: var(--soft); white-space: nowrap; text-indent: 0; display: inline-block; padding-left: 4px; }
.points b { display: inline-block; min-width: 1.3em; }
svg .roofline { stroke: var(--text); stroke-width: 1.5; } svg .roofname { fill: var(--text); font-size: 11px; }
svg .number { fill: var(--text); font-size: 11px; font-weight: 600; }
svg .number, svg .roofname { paint-order: stroke; stroke: var(--card); stroke-width: 3px; stroke-linejoin: round; }
svg .faint { fill: var(--soft); opacity: 0.3; }
circle.sown { fill: var(--one); } circle.speer { fill: var(--peer); }
circle.smodelled { fill: var(--card); stroke: var(--one); stroke-width: 2; }
.bars { --label: 21rem; --value: 11.5rem; position: relative; margin: 12px 0 0; font-size: 14px; }
.bars > .grid { position: absolute; left: calc(var(--label) + 14px); right: calc(var(--value) + 14px); top: 0;
  bottom: 40px; }
.bars > .grid i { position: absolute; top: 0; bottom: 0; border-left: 1px solid var(--line); }
.bars > .grid .roof { border-left: 2px solid var(--text); }
.bars > .grid b { position: absolute; top: 100%; left: 0; transform: translateX(-50%); font: normal 12px system-ui,
  sans-serif; color: var(--soft); white-space: nowrap; padding-top: 3px; }
.bar { position: relative; display: grid; grid-template-columns: var(--label) 1fr var(--value); gap: 0 14px;
  align-items: center; padding: 3px 0; }
.bar .label { line-height: 1.3; } .bar.peer .label, .bar.none .label, .bar.none .value { color: var(--soft); }
.bar .track { position: relative; height: 16px; } .bar .track i { display: block; height: 100%;
  background: var(--one);
  border-radius: 0 3px 3px 0; }
.bar.peer .track i { background: var(--peer); }
  .bar.modelled .track i { background: color-mix(in srgb, var(--one) 42%, var(--card)); }
.bar .track u { position: absolute; top: -3px; bottom: -3px; border-left: 3px solid var(--two); margin-left: -1px; }
.bars .axis { padding-top: 22px; margin-left: calc(var(--label) + 14px); font-size: 12.5px; color: var(--soft);
  line-height: 18px; }
@media (max-width: 820px) {
  main { padding: 22px 14px 48px; } .card { padding: 12px 14px; }
  .bars > .grid { left: 0; right: 0; } .bars .axis { margin-left: 0; }
  .bar { grid-template-columns: 1fr auto; padding: 5px 0; } .bar .track { grid-column: 1 / -1; grid-row: 2;
  height: 12px; }
  .bar .label, .bar .value { background: var(--card); align-self: stretch; } .bar { column-gap: 0; }
  .bar .value { text-align: right; padding-left: 10px; }
  .bars > .grid .low b { transform: none; } .bars > .grid .high b { transform: translateX(-100%); }
  .bars > .grid i:nth-child(even):not(.roof) b { display: none; }
  .wide thead { display: none; } .wide, .wide tbody, .wide tr, .wide td, .wide th { display: block; }
  .wide td { border-top: 0; padding: 1px 0; text-align: left; } .wide td.n { text-align: left; white-space: normal; }
  .wide td:first-child { border-top: 1px solid var(--line); padding-top: 8px; margin-top: 8px; font-weight: 600; }
  .wide td[data-label] { display: grid; grid-template-columns: 105px 1fr; gap: 0 8px; }
  .wide td:empty { display: none; } .wide td small { grid-column: 2; }
  .wide td[data-label]::before { content: attr(data-label); color: var(--soft); }
  table { font-size: 13px; } th, td { padding-right: 8px; }
}
"""
