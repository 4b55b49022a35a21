// What all parts of the page use. Text comes into the page by textContent alone, never as HTML.

const data = JSON.parse(document.getElementById('data').textContent);
const COLORS = 8;

const byId = (id) => document.getElementById(id);

/** An element; properties by name, those with a hyphen (and role) as attributes; children are nodes or text. */
function el(tag, properties = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (name.includes('-') || name === 'role') element.setAttribute(name, value);
    else element[name] = value;
  }
  element.append(...children);
  return element;
}

/** The same in SVG, where everything is an attribute. */
function svg(tag, attributes = {}, ...children) {
  const element = document.createElementNS('http://www.w3.org/2000/svg', tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  element.append(...children);
  return element;
}

/** The class that gives a thing the colour of an environment; none for language. */
function colorOf(environment) {
  const place = data.environments.indexOf(environment);
  return place < 0 ? '' : `k${place % COLORS}`;
}

/** Text that nothing in it can move, reverse or hide: what is not printable becomes �. Lines end as before. */
const visible = (text) => text.replace(/[\p{C}\p{Zl}\p{Zp}]/gu, (c) => (c === '\n' ? c : '�'));

/** As `visible`, for where there is one line and a lone space has to be seen. */
function inOneLine(text) {
  const shown = visible(text).replaceAll('\n', '↵');
  return shown.trim() || '␣'.repeat(shown.length) || '(nothing)';
}

const number = (value, digits = 3) => (value === null || value === undefined ? '–' : value.toFixed(digits).replace('-', '−'));
const signed = (value) => (value === null ? '–' : (value >= 0 ? '+' : '') + number(value));

function percent(p) {
  if (p === null) return '–';
  if (p > 0.9995 && p < 1) return '>99.9 %';
  if (p > 0 && p < 0.0001) return '<0.01 %';
  return `${(100 * p).toFixed(p < 0.01 ? 2 : 1)} %`;
}

const facts = (pairs) => pairs.map(([name, value]) => el('div', {}, el('dt', {}, name), el('dd', {}, value)));

byId('name').textContent = visible(data.name);
byId('facts').append(...facts(data.facts.map(([name, value]) => [name, visible(value)])));
byId('notes').append(...data.notes.map((note) => el('li', {}, visible(note))));
