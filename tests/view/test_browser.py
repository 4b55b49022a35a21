"""The page in a real browser: it renders, filters, can be used with keys, and does nothing that a text asks for."""

import shutil
import time

import pytest

from earl_jax.view import data as data_lib
from earl_jax.view.page import page
from tests.view import hostile

sync_api = pytest.importorskip('playwright.sync_api', reason='needs `pip install playwright`')
CHROMIUM = next(filter(None, map(shutil.which, ('chromium', 'chromium-browser', 'google-chrome'))), None)
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason='needs Chromium')
QUIET = (
    '--no-sandbox', '--disable-gpu', '--disable-quic', '--no-first-run', '--disable-background-networking',
    '--disable-component-update', '--disable-sync',
)
SEEN = {'DIV', 'SPAN', 'H3', 'DL', 'DT', 'DD', 'DETAILS', 'SUMMARY', 'UL', 'LI', 'P', 'CODE', 'KBD', 'I', 'BUTTON'}


@pytest.fixture(scope='module')
def browser():
  with sync_api.sync_playwright() as playwright:
    browser = playwright.chromium.launch(executable_path=CHROMIUM, args=QUIET)
    yield browser
    browser.close()


@pytest.fixture
def show(browser, tmp_path):
  """Opens the page of some samples; fails if anything was complained of, or asked of a network."""
  complaints, contexts = [], []

  def open_page(lines, **more):
    data = data_lib.read(hostile.write_run(tmp_path, lines)) | more
    (tmp_path / 'view.html').write_text(page(data), encoding='utf-8')
    contexts.append(browser.new_context(viewport={'width': 1440, 'height': 900}))
    tab = contexts[-1].new_page()
    tab.on('pageerror', lambda error: complaints.append(str(error)))
    tab.on('console', lambda message: complaints.append(message.text))
    tab.on('dialog', lambda dialog: complaints.append('dialog'))
    tab.on('request', lambda request: request.url.startswith(('file:', 'data:')) or complaints.append(request.url))
    tab.goto((tmp_path / 'view.html').as_uri())
    return tab, data

  yield open_page
  for context in contexts:
    context.close()
  assert not complaints


def test_reads_and_filters(show):
  lines = [hostile.line(f'word{i}', step=i % 3, task=f'sort{i % 2}') for i in range(30)]
  lines[7]['factual'] = lines[7]['factual'] | {'reward': 0.9}
  lines[8]['counterfactual'] = None
  tab, _ = show(lines)
  count = tab.locator('#count')
  assert count.inner_text() == '30 of 30 episodes' and tab.locator('.chart').count() == 3
  for field, value, expected in [('step', '1', 10), ('task', 'sort1', 15), ('environment', 'compare', 30)]:
    tab.select_option(f'#{field}', value)
    assert count.inner_text() == f'{expected} of 30 episodes'
    tab.select_option(f'#{field}', '')
  tab.fill('#least', '0.8')
  assert count.inner_text() == '1 of 30 episodes' and 'word7' in tab.locator('#episode').inner_text()
  tab.fill('#least', '')
  tab.fill('#text', 'WORD12')
  assert count.inner_text() == '1 of 30 episodes' and 'word12' in tab.locator('#episode').inner_text()
  tab.fill('#text', '')
  tab.check('#rewritten')
  assert count.inner_text() == '29 of 30 episodes'
  # Keys: down the list, then from one decision to the next.
  tab.focus('#list [aria-selected=true]')
  before = tab.locator('#episode h3').first.inner_text()
  tab.keyboard.press('ArrowDown')
  assert tab.locator('#list [aria-selected=true]').count() == 1
  assert tab.locator('#episode').inner_text() and tab.locator('#episode h3').first.inner_text() != before
  tab.focus('#episode [aria-selected=true]')
  title = tab.locator('#decision h3').inner_text()
  tab.keyboard.press('ArrowRight')
  assert tab.locator('#decision h3').inner_text() != title
  assert 'What if' in tab.locator('.side.other').inner_text()


def test_draws_the_algorithm(show):
  leaf = {'calls': [], 'leaves': [{'exact': True, 'good': True, 'spent': [['comparisons', 1.0]]}]}
  seen = [{'text': f'A {sign} B', 'next': leaf} for sign in '<>']
  tree = {'calls': [{'environment': 'compare', 'asked': 'A and B', 'seen': seen}], 'leaves': []}
  rows = [{'name': '<b>policy', 'means': {'comparisons': 1.0}, 'worst': 1.0}]
  tab, _ = show([hostile.line('x')], algorithm={
      'task': 'sort2', 'claim': 'certified', 'proved': True, 'good': 2, 'problems': 2, 'leaves': 2,
      'cost': 'comparisons', 'step': 3, 'rows': rows, 'trees': [{'prompt': '<i>sort', 'root': tree}],
  })
  drawn = tab.locator('.tree svg').text_content()
  assert drawn.count('A and B') == 2 and 'A < B' in drawn and drawn.count('✓ comparisons 1') == 2  # one in a title
  assert 'Proved, for all 2 problems' in tab.locator('#algorithm').inner_text()
  assert tab.locator('#algorithm b').count() == 1 and not tab.locator('#algorithm i').count()


@pytest.mark.parametrize('count', [300, pytest.param(5_000, marks=pytest.mark.slow)])
def test_hostile_texts(show, count):
  """Every episode is shown in turn: no element comes of a text, and every text is there, as one can see it."""
  tab, data = show([hostile.line(text, step=i // 500) for i, text in enumerate(hostile.texts(count))])
  assert len(data['episodes']) > 0.8 * count or count > 300  # what is too much for a page is left out
  tags, wrong, seconds = tab.evaluate("""() => {
    const tags = new Set(), wrong = [];
    const began = performance.now();
    data.episodes.forEach((episode, i) => {
      choose(i);
      for (const id of ['episode', 'decision']) for (const e of byId(id).querySelectorAll('*')) tags.add(e.tagName);
      const said = [...document.querySelectorAll('#episode .words')].map((box) => box.textContent).join('');
      const all = [...episode.factual.decisions, ...episode.counterfactual.decisions];
      const wanted = all.map((d) => visible(d.text) + visible(d.written ?? '')).join('');
      const plain = (text) => text.replace(/[\\n↵␣ ]/g, '');
      const shown = ['episode', 'decision', i % 100 ? 'count' : 'list'].map((id) => byId(id).textContent).join('');
      const unseen = /\\p{C}/u.test(shown.replaceAll('\\n', ''));
      if (unseen || plain(said) !== plain(wanted)) wrong.push([i, unseen, said, wanted]);
    });
    return [[...tags], wrong.slice(0, 3), (performance.now() - began) / 1000];
  }""")
  assert set(tags) <= SEEN and not wrong
  assert tab.evaluate('window.broken') is None and tab.locator('script').count() == 2
  assert tab.locator('img, iframe, object, embed, base, form').count() == 1  # the filters
  assert seconds < 0.05 * count


def test_long_episodes_and_quick_filters(show):
  """10,000 tokens on a page, and filters over it within 100 ms."""
  words = [hostile.decision(f' w{i % 97}') for i in range(10_000)]
  lines = [hostile.line(f'x{i}', step=i % 10) for i in range(1_000)]
  lines[0]['factual'] = lines[0]['factual'] | {'decisions': words}
  began = time.monotonic()
  tab, _ = show(lines)
  assert tab.locator('#episode .d').count() >= 10_000
  assert time.monotonic() - began < 4  # two seconds are the aim; the machine may be shared
  took = tab.evaluate("""() => {
    const took = [];
    for (const [id, value] of [['text', 'x99'], ['text', ''], ['step', '3'], ['step', ''], ['task', 'x5']]) {
      const began = performance.now();
      byId(id).value = value;
      byId('filters').dispatchEvent(new Event('input', {bubbles: true}));
      took.push(performance.now() - began);
    }
    return took;
  }""")
  assert sorted(took)[2] < 100
