"""The style sheet of all pages: paper, screen and phone; light and dark as the reader's system is."""

CSS = """
:root { --ink: #1c1c1c; --soft: #5c5c5c; --line: #dcdcdc; --paper: #fdfdfc; --card: #ffffff; --note: #f4f3ef;
  --mark: #0072b2; --grave: #b3470a; --fair: #8a6100; --good: #00704f; color-scheme: light dark; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e6e4df; --soft: #a5a29b; --line: #3a3936; --paper: #1a1a19; --card: #ffffff; --note: #262523;
    --mark: #6db6e8; --grave: #f08a4b; --fair: #e0b04a; --good: #4fc49b; }
}
* { box-sizing: border-box; }
html { -webkit-text-size-adjust: 100%; text-size-adjust: 100%; }
body { margin: 0; background: var(--paper); color: var(--ink); overflow-wrap: break-word;
  font: 16px/1.55 "Charter", "Iowan Old Style", "Source Serif 4", "Georgia", "Cambria", serif; }
main { max-width: 50rem; margin: 0 auto; padding: 3rem 1.25rem 5rem; }
h1, h2, h3, th, nav, .label, figcaption, .code, .grade {
  font-family: "Inter", "Helvetica Neue", "Segoe UI", "Arial", sans-serif; }
h1 { font-size: 1.9rem; line-height: 1.2; letter-spacing: -0.015em; margin: 0 0 .4rem; }
h2 { font-size: 1.2rem; letter-spacing: -0.01em; margin: 3rem 0 .6rem; padding-top: 1rem;
  border-top: 1px solid var(--line); }
h3 { font-size: .95rem; margin: 1.6rem 0 .3rem; }
p, ul, ol { margin: .6rem 0; } li { margin: .3rem 0; } ul, ol { padding-left: 1.4rem; }
a { color: var(--mark); text-decoration-thickness: 1px; text-underline-offset: 2px; }
.lead { color: var(--soft); margin: 0 0 1.6rem; }
.answer { background: var(--note); border-left: 3px solid var(--mark); padding: .9rem 1.2rem; margin: 1.2rem 0; }
.answer p { margin: .5rem 0; } .answer p:first-child { margin-top: 0; } .answer p:last-child { margin-bottom: 0; }
.answer.grave { border-color: var(--grave); } .answer.fair { border-color: var(--fair); }
.answer.good { border-color: var(--good); }
.grade { font-size: .86rem; font-weight: 600; }
.grave .grade, h3.grave { color: var(--grave); }
.fair .grade { color: var(--fair); } .good .grade { color: var(--good); }
nav { font-size: .82rem; line-height: 1.5; margin-top: 1.2rem; }
nav ol { columns: 2; column-gap: 2rem; margin: .4rem 0 0; padding-left: 1.6rem; }
nav li { margin: .15rem 0; break-inside: avoid; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; margin: 1rem 0; font-size: .88rem;
  font-variant-numeric: tabular-nums lining-nums; }
th { text-align: right; font-weight: 600; font-size: .76rem; color: var(--soft);
  vertical-align: bottom; }
td { text-align: right; white-space: nowrap; vertical-align: top; }
th:first-child, td:first-child { text-align: left; }
th:first-child { min-width: 5.5rem; }
td.words { white-space: normal; text-align: left; min-width: 10rem; overflow-wrap: anywhere; }
th.words { text-align: left; }
th, td { padding: .34rem .9rem .34rem 0; border-bottom: 1px solid var(--line); }
thead th { border-bottom: 1.5px solid var(--soft); }
.ci { color: var(--soft); }
figure { margin: 1.4rem 0; break-inside: avoid; }
figure .plot { background: var(--card); border-radius: 4px; padding: .6rem; }
figure svg { display: block; width: 100%; max-width: 40rem; height: auto; margin: 0 auto; }
figcaption { font-size: .82rem; line-height: 1.45; color: var(--soft); margin-top: .5rem; }
.code { font-size: .72rem; color: var(--soft); border: 1px solid var(--line); border-radius: 3px;
  padding: .05rem .35rem; white-space: nowrap; }
.do { color: var(--soft); }
pre { font-size: .78rem; line-height: 1.4; overflow-x: auto; background: var(--note); padding: .8rem 1rem; }
summary { cursor: pointer; } .hash { overflow-wrap: anywhere; }
sup { line-height: 0; }
@media (max-width: 36rem) {
  main { padding: 1.4rem .9rem 3rem; } h1 { font-size: 1.5rem; } h2 { margin-top: 2.2rem; }
  nav ol { columns: 1; } .answer { padding: .8rem .9rem; } figure .plot { padding: .2rem; }
  table { font-size: .82rem; } th, td { padding: .3rem .7rem .3rem 0; }
}
@media print {
  :root { --ink: #000; --soft: #444; --line: #bbb; --paper: #fff; --note: #f4f3ef; --mark: #0072b2;
    --grave: #b3470a; --fair: #8a6100; --good: #00704f; color-scheme: light; }
  @page { margin: 18mm 16mm; }
  body { font-size: 10.5pt; } main { max-width: none; padding: 0; } nav { display: none; }
  h2, h3 { break-after: avoid; } tr, .answer { break-inside: avoid; } thead { display: table-header-group; }
  .wide { overflow: visible; } pre { white-space: pre-wrap; } figure svg { max-width: 15cm; }
}
"""
