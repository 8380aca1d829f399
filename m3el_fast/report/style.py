"""The page's style sheet: light and dark, wide and narrow, on paper."""

STYLE = """
:root { color-scheme: light dark; --page: #f6f7f9; --card: #fff; --text: #1b1f26; --soft: #5c6572; --line: #e1e5ea;
  --one: #2563c9; --two: #c4590c; --good: #17713b; --wash: #edf6f0; --mark: #ffe9a8; --code: #eef1f5; }
@media screen and (prefers-color-scheme: dark) { :root { --page: #12151a; --card: #1a1e25; --text: #e6e9ee;
  --soft: #9aa4b2; --line: #2d333d; --one: #6ea3f5; --two: #f0995a; --good: #62c98a; --wash: #18271f;
  --mark: #5c4a12; --code: #242a33; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--page); color: var(--text); font: 15px/1.5 system-ui, "Segoe UI", Roboto,
  "Helvetica Neue", Arial, sans-serif; font-variant-numeric: tabular-nums; }
main { max-width: 1080px; margin: 0 auto; padding: 32px 20px 64px; }
h1 { font-size: 28px; line-height: 1.2; margin: 0 0 6px; letter-spacing: -0.01em; overflow-wrap: anywhere; }
h2 { font-size: 20px; margin: 44px 0 4px; }
p { margin: 4px 0 12px; max-width: 75ch; overflow-wrap: anywhere; }
header p, .soft, section > p { color: var(--soft); }
nav { display: flex; flex-wrap: wrap; gap: 4px 18px; margin: 16px 0 0; }
a { color: var(--one); text-decoration: none; } a:hover { text-decoration: underline; }
:focus-visible { outline: 2px solid var(--one); outline-offset: 2px; }
code { font: 12.5px/1.45 ui-monospace, "SF Mono", Menlo, Consolas, monospace; background: var(--code);
  padding: 1px 5px; border-radius: 4px; overflow-wrap: anywhere; }
.tiles { display: flex; flex-wrap: wrap; gap: 12px; margin: 18px 0 0; }
.tiles div { background: var(--card); border: 1px solid var(--line); border-radius: 10px; padding: 10px 18px;
  flex: 1 1 120px; display: flex; flex-direction: column-reverse; }
.tiles dd { margin: 0; font-size: 24px; font-weight: 700; line-height: 1.25; }
.tiles dt { color: var(--soft); font-size: 13px; }
.card, .case { background: var(--card); border: 1px solid var(--line); border-radius: 10px; padding: 14px 20px;
  margin: 14px 0; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; font-size: 14px; }
thead th { font-size: 12.5px; color: var(--soft); } th { text-align: left; font-weight: 600; }
th, td { padding: 5px 14px 5px 0; white-space: nowrap; } th:last-child, td:last-child { padding-right: 0; }
tbody th { font-weight: 400; } td.n, th.n { text-align: right; }
.plain tbody tr > * { border-top: 1px solid var(--line); padding-top: 7px; padding-bottom: 7px; }
.bars .track { width: 100%; padding-right: 14px; } .track div { background: var(--code); border-radius: 0 3px 3px 0;
  min-height: 15px; }
.bars .track i { display: block; height: 15px; min-width: 1px;
  background: var(--one); border-radius: 0 3px 3px 0; }
.split { display: grid; grid-template-columns: minmax(0, 400px) minmax(0, 1fr); gap: 8px 40px; align-items: start; }
.facts th { white-space: normal; }
figure { margin: 0; } figcaption { font-weight: 600; font-size: 14px; margin: 4px 0; }
svg { display: block; width: 100%; height: auto; overflow: visible; }
svg .grid { stroke: var(--line); } svg text { fill: var(--soft); font-size: 12px; }
svg .ideal { stroke: var(--soft); stroke-width: 1.5; stroke-dasharray: 5 4; }
svg polyline { fill: none; stroke: var(--one); stroke-width: 2; stroke-linejoin: round; }
svg .gap { stroke: var(--two); stroke-width: 2; } svg circle { fill: var(--one); stroke: var(--card); }
details { margin: 6px 0; font-size: 13px; } summary { cursor: pointer; width: fit-content; color: var(--soft); }
.case header { display: flex; justify-content: space-between; gap: 4px 20px; flex-wrap: wrap; align-items: baseline; }
.case h3 { font-size: 17px; margin: 0; overflow-wrap: anywhere; } h3 .soft { font-size: 13px; font-weight: 400; }
.case h4 { font-size: 12.5px; color: var(--soft); margin: 14px 0 4px; }
.rank { margin: 0; font-size: 14px; }
.asked { display: flex; gap: 16px; align-items: flex-start; margin: 8px 0 0; } .asked p { margin: 0; }
mark { background: var(--mark); color: inherit; border-radius: 3px; padding: 0 2px; }
.picture { flex: none; width: 76px; height: 76px; border-radius: 6px; overflow: hidden; background: var(--code); }
.asked .picture:not(.none) { width: 132px; height: 132px; }
.picture img { width: 100%; height: 100%; object-fit: contain; display: block; }
.picture.none { display: grid; place-items: center; color: var(--soft); font-size: 11.5px; border: 1px dashed
  var(--line); background: none; }
.best { list-style: none; margin: 0; padding: 0; }
.choice { display: grid; grid-template-columns: 76px minmax(0, 1fr) minmax(0, 340px); gap: 6px 16px;
  padding: 8px; margin: 0 -8px; align-items: start; border-radius: 8px; }
.best li + li .choice:not(.gold) { border-top: 1px solid var(--line); border-radius: 0; }
.choice.gold { background: var(--wash); }
.choice p { margin: 0; } .who .name { font-weight: 600; } .who p { font-size: 13.5px; line-height: 1.4; }
.who .name { font-size: 14.5px; } .right { color: var(--good); font-size: 12.5px; }
.components { list-style: none; margin: 0; padding: 0; font-size: 12.5px; line-height: 18px; }
.components li { display: grid; grid-template-columns: 88px 1fr 52px; gap: 8px; align-items: center; }
.components span { color: var(--soft); white-space: nowrap; } .components em { font-style: normal; text-align: right; }
.components b { position: relative; height: 10px; } .components i { position: absolute; top: 0; bottom: 0;
  background: var(--one); border-radius: 2px; min-width: 1px; }
.components u { position: absolute; top: -3px; bottom: -3px; border-left: 1px solid var(--soft); }
@media (max-width: 760px) {
  main { padding: 22px 14px 48px; } .card, .case { padding: 12px 14px; }
  .split { grid-template-columns: 1fr; } th, td { padding-right: 9px; font-size: 13px; }
  .bars tr > :first-child { white-space: normal; min-width: 6em; }
  .choice { grid-template-columns: 56px minmax(0, 1fr); } .components { grid-column: 1 / -1; }
  .choice .picture { width: 56px; height: 56px; font-size: 10px; }
  .asked .picture:not(.none) { width: 96px; height: 96px; }
}
@media print {
  :root { color-scheme: light; }
  body { background: none; } main { max-width: none; padding: 0; } nav { display: none; }
  i, .track div, .choice.gold, mark { print-color-adjust: exact; -webkit-print-color-adjust: exact; }
  .card, .choice, .asked, tr { break-inside: avoid; } h2, h3, h4, .case header { break-after: avoid; }
}
"""
