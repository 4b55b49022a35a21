// Episodes: a list that filters, one episode with its counterfactual, and the decision that is looked at.

const SHOWN = 100;  // entries of the list at a time
const episodes = data.episodes;

/** All the decisions of both sides. */
const decisionsOf = (episode) => [...episode.factual.decisions, ...(episode.counterfactual?.decisions ?? [])];
const callOf = (decision) => decision.environment !== undefined || decision.language === false;

const searched = episodes.map((episode) =>
  [episode.prompt, ...decisionsOf(episode).map((d) => d.text + (d.written ?? ''))].join('').toLowerCase());
const environmentsIn = episodes.map((episode) => new Set(decisionsOf(episode).map((d) => d.environment)));

let matching = [], current = -1, shown = SHOWN;

function fill(select, values, name = (value) => value) {
  select.append(el('option', {value: ''}, 'all'), ...values.map((value) => el('option', {value}, visible(`${name(value)}`))));
}

function filter() {
  const wanted = Object.fromEntries(['step', 'task', 'environment', 'least', 'most', 'text'].map((id) => [id, byId(id).value]));
  const text = wanted.text.toLowerCase(), rewritten = byId('rewritten').checked;
  const least = wanted.least === '' ? -Infinity : +wanted.least - 1e-9, most = wanted.most === '' ? Infinity : +wanted.most + 1e-9;
  matching = [];
  episodes.forEach((episode, i) => {
    if (wanted.step !== '' && episode.step !== +wanted.step) return;
    if (wanted.task !== '' && episode.task !== wanted.task) return;
    if (wanted.environment !== '' && !environmentsIn[i].has(wanted.environment)) return;
    if (episode.factual.reward < least || episode.factual.reward > most) return;
    if (rewritten && !episode.counterfactual) return;
    if (text && !searched[i].includes(text)) return;
    matching.push(i);
  });
  shown = SHOWN;
  list();
  if (!matching.includes(current)) choose(matching.length ? matching[0] : -1);
}

/** A square for every call, in the colour of its environment. */
function trace(part) {
  const calls = part.decisions.filter((d) => d.environment !== undefined && d.language);
  return el('span', {className: 'trace', 'aria-hidden': 'true'}, ...calls.slice(0, 18).map((d) => el('i', {className: colorOf(d.environment)})));
}

function entry(i) {
  const {step, task, factual, counterfactual: other} = episodes[i];
  const meter = el('i');
  meter.style.width = `${100 * Math.max(0, Math.min(1, factual.reward ?? 0))}%`;
  const button = el('button', {type: 'button', tabIndex: -1, role: 'option', 'aria-selected': `${i === current}`},
    el('span', {className: 'where'}, `step ${step} · ${inOneLine(task)}`), el('span', {className: 'reward'}, number(factual.reward, 2)),
    trace(factual), el('span', {className: 'gain'}, other ? `what if: ${number(other.reward, 2)}` : ''), el('span', {className: 'meter'}, meter));
  button.dataset.index = i;
  return button;
}

function list() {
  const entries = matching.slice(0, shown).map(entry);
  if (matching.length > shown) {
    const more = el('button', {type: 'button', className: 'more'}, `${matching.length - shown} more`);
    more.addEventListener('click', (event) => { event.stopPropagation(); shown += SHOWN; list(); });
    entries.push(more);
  }
  byId('list').replaceChildren(...entries);
  byId('count').textContent = `${matching.length.toLocaleString('en')} of ${episodes.length.toLocaleString('en')} episodes`;
  reachable();
}

/** Of the entries Tab reaches the chosen one; arrow keys go on from there. */
function reachable() {
  for (const button of byId('list').querySelectorAll('[data-index]')) {
    const chosen = +button.dataset.index === current;
    button.setAttribute('aria-selected', `${chosen}`);
    button.tabIndex = chosen ? 0 : -1;
  }
}

function choose(i) {
  current = i;
  reachable();
  byId('episode').replaceChildren(...(i < 0 ? [el('p', {}, 'No episode matches.')] : drawEpisode(episodes[i])));
  marks.length ? look(marks[startAt], false) : byId('decision').replaceChildren();
}

// One episode.

let marks = [], startAt = 0;  // decisions on the page, in reading order: {element, decision, part, place, forced}

function words(decisions, part, first, forced = -1) {
  const box = el('div', {className: 'words', role: 'listbox', 'aria-label': 'Decisions: arrow keys go from one to the next'});
  decisions.forEach((decision, i) => {
    const classes = ['d', decision.environment === undefined ? '' : colorOf(decision.environment)];
    if (callOf(decision)) classes.push('called');
    if (i === forced) classes.push('forced');
    if (decision.log_prob !== null && decision.log_prob < Math.log(0.5)) classes.push('unsure');
    // A space before a word, and the end of a line, stand outside of its frame.
    const text = visible(decision.text), [, space, body, breaks] = /^( ?)([^]*?)(\n*)$/.exec(text);
    const element = el('span', {className: classes.join(' '), tabIndex: -1, role: 'option', 'aria-selected': 'false'}, body + '↵'.repeat(breaks.length) || '␣');
    element.dataset.mark = marks.length;
    marks.push({element, decision, part, place: first + i, forced: i === forced});
    box.append(space, element, breaks);
    if (decision.written) {
      const [, seen, end] = /^([^]*?)(\n*)$/.exec(visible(decision.written));
      box.append(el('span', {className: `w ${colorOf(decision.environment)}`}, seen), end);
    }
  });
  if (!decisions.length) box.append(el('span', {className: 'end'}, 'nothing follows'));
  if (part.omitted) box.append(el('span', {className: 'end'}, ` … and ${part.omitted.toLocaleString('en')} decisions more`));
  else if (!part.finished) box.append(el('span', {className: 'end'}, ' … cut off: no room was left'));
  return box;
}

function head(title, part, more = []) {
  return el('div', {className: 'top'}, el('h3', {}, title), el('dl', {className: 'facts'}, ...facts([
    ['reward', number(part.reward)], ...more, ['advantage', part.advantage === null ? 'not learned from' : signed(part.advantage)]])));
}

function drawEpisode(episode) {
  const {factual, counterfactual: other} = episode;
  marks = [];
  startAt = 0;
  const spent = Object.entries(factual.metrics).map(([name, value]) => `${inOneLine(name).replaceAll('_', ' ')} ${value === null ? '–' : +value.toFixed(3)}`);
  const about = el('div', {className: 'about'}, ...[['Prompt', visible(episode.prompt)], ['Numbers', spent.join('\n')]].map(([name, text]) =>
    el('details', {}, el('summary', {}, name), el('div', {className: 'prompt'}, text))));
  const exact = [['exact match', factual.exact_match ? 'yes' : 'no']];
  const title = `${inOneLine(episode.task)}, step ${episode.step}, rollout ${episode.row}`;
  let body;
  if (other) {
    const fork = Math.max(0, Math.min(other.fork, factual.decisions.length));
    const shared = words(factual.decisions.slice(0, fork), {finished: true}, 0);
    shared.classList.add('shared');
    const left = words(factual.decisions.slice(fork), factual, fork);
    startAt = marks.length;
    const right = words(other.decisions, other, fork, 0);
    startAt = Math.min(startAt, marks.length - 1);  // there may be nothing after the fork
    const gain = [['gain', signed(other.reward === null || factual.reward === null ? null : other.reward - factual.reward)]];
    body = [
      el('div', {className: 'top'}, el('h3', {}, title)), about, fork ? shared : '',
      el('div', {className: 'sides'},
        el('div', {className: 'side'}, head('What happened', factual, exact), left),
        el('div', {className: `side other ${colorOf(other.environment)}`}, head(`What if: ${inOneLine(other.environment)} here`, other, gain), right)),
    ];
  } else {
    const all = words(factual.decisions, factual, 0);
    startAt = Math.max(0, factual.decisions.findIndex(callOf));
    body = [head(title, factual, exact), about, all];
  }
  const names = data.environments.flatMap((name) => [
    el('span', {className: `d called ${colorOf(name)}`}, inOneLine(name)), el('span', {className: `w ${colorOf(name)}`}, 'written')]);
  return [...body, el('div', {className: 'legend'}, el('span', {className: 'd'}, 'chosen'), el('span', {className: 'd unsure'}, 'less than 50 % likely'),
    ...names, ...(other ? [el('span', {className: 'd called forced'}, 'forced')] : []))];
}

// One decision.

function look(mark, focus = true) {
  for (const {element} of marks) if (element.tabIndex === 0) { element.tabIndex = -1; element.setAttribute('aria-selected', 'false'); }
  mark.element.tabIndex = 0;
  mark.element.setAttribute('aria-selected', 'true');
  if (focus) mark.element.focus();
  const {decision, part, place, forced} = mark, inside = decision.language === false;
  const legal = decision.legal === undefined ? null : (inside ? '' : 'any token, ') + `${decision.legal} action${decision.legal === 1 ? '' : 's'}`;
  const where = inside ? `in ${inOneLine(decision.environment || 'a call')}` : 'in language';
  const numbers = [
    ['log-probability', number(decision.log_prob)],
    ...(decision.reference === undefined ? [] : [['… reference', number(decision.reference)]]),
    ...(decision.entropy === undefined ? [] : [['entropy, tokens as one', number(decision.entropy)]]),
    ['advantage', part.advantage === undefined ? 'shared' : part.advantage === null ? 'not learned from' : signed(part.advantage)],
    ...(legal ? [['legal', legal]] : []),
  ];
  const options = (decision.options ?? [[decision.text, decision.log_prob === null ? null : Math.exp(decision.log_prob), decision.environment ?? '']]);
  const bars = options.map(([text, p, environment], i) => ({text, p, environment, chosen: i === 0})).sort((a, b) => b.p - a.p).map(({text, p, environment, chosen}) => {
    const bar = el('span', {className: 'bar'});
    bar.style.width = `${100 * Math.max(0, Math.min(1, p ?? 0))}%`;
    return el('li', {className: `${colorOf(environment)} ${chosen ? 'chosen' : ''}`}, bar, environment ? el('i') : '', el('code', {}, inOneLine(text)), el('span', {className: 'p'}, percent(p)));
  });
  byId('decision').replaceChildren(
    el('h3', {}, `Decision ${place + 1}, ${where}`), el('p', {}, forced ? 'Forced, to see what would follow.' : 'What was possible, and how likely.'),
    el('ul', {className: 'options'}, ...bars),
    el('dl', {className: 'numbers'}, ...numbers.flatMap(([name, value]) => [el('dt', {}, name), el('dd', {}, value)])),
    el('p', {className: 'hint'}, ...(decision.options ? [] : ['Of this decision only what was chosen is kept. ']), el('kbd', {}, '←'), ' ', el('kbd', {}, '→'), ' the next decision, ', el('kbd', {}, '↑'), ' ', el('kbd', {}, '↓'), ' in the list the next episode'));
}

function start() {
  const distinct = (values) => [...new Set(values)];
  fill(byId('step'), distinct(episodes.map((episode) => episode.step)).sort((a, b) => a - b));
  fill(byId('task'), distinct(episodes.map((episode) => episode.task)).sort());
  fill(byId('environment'), data.environments);
  byId('filters').addEventListener('input', filter);
  byId('filters').addEventListener('submit', (event) => event.preventDefault());
  byId('list').addEventListener('click', (event) => {
    const button = event.target.closest('[data-index]');
    if (button) { choose(+button.dataset.index); button.focus(); }
  });
  byId('list').addEventListener('keydown', (event) => {
    const move = {ArrowUp: -1, ArrowDown: 1}[event.key], place = matching.indexOf(current) + move;
    if (!move || !(place in matching)) return;
    event.preventDefault();
    while (place >= shown) { shown += SHOWN; list(); }
    choose(matching[place]);
    byId('list').querySelector('[aria-selected="true"]').focus();
  });
  byId('episode').addEventListener('click', (event) => {
    const element = event.target.closest('[data-mark]');
    if (element) look(marks[+element.dataset.mark]);
  });
  byId('episode').addEventListener('keydown', (event) => {
    const move = {ArrowLeft: -1, ArrowRight: 1}[event.key], element = event.target.closest('[data-mark]');
    const next = element && move ? marks[+element.dataset.mark + move] : null;
    if (next) { event.preventDefault(); look(next); }
  });
  byId('episodes').hidden = false;
  current = -1;
  filter();
}

if (episodes.length) start();
for (const link of document.querySelectorAll('nav a')) link.hidden = byId(link.hash.slice(1)).hidden;
