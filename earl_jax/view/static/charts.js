// Learning curves: lines are training batches, points greedy evaluations, dashes the optimum.

const WIDTH = 360, HEIGHT = 190, LEFT = 43, RIGHT = 8, TOP = 18, BOTTOM = 24;

/** Round numbers that cover [0 or least, most], about `count` of them. */
function ticks(least, most, count) {
  const raw = (most - least) / count || 1, power = 10 ** Math.floor(Math.log10(raw));
  const step = power * [1, 2, 2.5, 5, 10].find((factor) => factor * power >= raw);
  const found = [];
  for (let i = Math.floor(least / step); i * step <= most + step * 1e-6; i++) found.push(+(i * step).toPrecision(6));
  return found;
}

const seriesColor = (series) => (series.color === null ? '' : `k${(series.color + 2) % COLORS}`);

function sign(series) {
  const box = svg('svg', {viewBox: '0 0 18 10', 'aria-hidden': 'true', class: seriesColor(series)});
  if (series.kind === 'points') box.append(svg('circle', {cx: 9, cy: 5, r: 3.5, class: 'point'}));
  else box.append(svg('line', {x1: 0, x2: 18, y1: 5, y2: 5, class: series.kind === 'line' ? 'curve' : 'level'}));
  return box;
}

function drawChart(chart) {
  const values = chart.series.flatMap((s) => (s.kind === 'level' ? [s.level] : s.points.map((p) => p[1])));
  const steps = chart.series.flatMap((s) => s.points.map((p) => p[0]));
  const last = Math.max(1, ...steps);
  const least = Math.min(0, ...values), most = chart.percent ? 1 : Math.max(...values, least + 1e-3);
  const marks = ticks(least, most, 4), low = Math.min(least, marks[0]), high = Math.max(most, marks.at(-1));
  const x = (step) => LEFT + (step / last) * (WIDTH - LEFT - RIGHT);
  const y = (value) => HEIGHT - BOTTOM - ((value - low) / (high - low || 1)) * (HEIGHT - TOP - BOTTOM);
  const digits = marks.every((mark) => Number.isInteger(mark)) ? 0 : marks.every((mark) => Number.isInteger(10 * mark)) ? 1 : 2;
  const show = (value) => (chart.percent ? `${Math.round(100 * value)} %` : number(value, digits));

  const picture = svg('svg', {viewBox: `0 0 ${WIDTH} ${HEIGHT}`, role: 'img', tabindex: 0, 'aria-label': `${chart.title} by step; arrow keys read values`});
  for (const mark of marks) {
    picture.append(svg('line', {x1: LEFT, x2: WIDTH - RIGHT, y1: y(mark), y2: y(mark), class: 'grid'}));
    picture.append(svg('text', {x: LEFT - 8, y: y(mark) + 4, 'text-anchor': 'end'}, show(mark)));
  }
  for (const mark of ticks(0, last, 4).filter((mark) => Number.isInteger(mark))) {
    picture.append(svg('text', {x: x(mark), y: HEIGHT - 7, 'text-anchor': 'middle'}, mark.toLocaleString('en')));
  }
  let free = -Infinity;  // labels that would lie on one another are left out; the line stays, and says its name
  for (const stage of data.stages.slice(data.stages.length > 1 ? 0 : 1)) {
    const line = svg('line', {x1: x(stage.step), x2: x(stage.step), y1: TOP - 4, y2: HEIGHT - BOTTOM, class: 'stage'});
    line.append(svg('title', {}, visible(`${stage.name}: ${stage.tasks}`)));
    picture.append(line);
    if (x(stage.step) > free) {
      picture.append(svg('text', {x: x(stage.step) + 3, y: TOP - 6}, stage.name));
      free = x(stage.step) + 40;
    }
  }
  const order = {level: 0, line: 1, points: 2};
  for (const series of [...chart.series].sort((a, b) => order[a.kind] - order[b.kind])) {
    const group = svg('g', {class: seriesColor(series)});
    if (series.kind === 'level') group.append(svg('line', {x1: LEFT, x2: WIDTH - RIGHT, y1: y(series.level), y2: y(series.level), class: 'level'}));
    else if (series.kind === 'points') group.append(...series.points.map(([step, value]) => svg('circle', {cx: x(step), cy: y(value), r: 3.6, class: 'point'})));
    else group.append(svg('path', {class: 'curve', d: 'M' + series.points.map(([step, value]) => `${x(step).toFixed(1)} ${y(value).toFixed(1)}`).join('L')}));
    picture.append(group);
  }

  // Reading: the value of every series nearest to a step.
  const cursor = svg('line', {y1: TOP, y2: HEIGHT - BOTTOM, class: 'cursor', visibility: 'hidden'});
  picture.append(cursor);
  const key = el('ul', {className: 'key'}), outputs = [];
  for (const series of chart.series) {
    const output = el('b');
    outputs.push(output);
    key.append(el('li', {}, sign(series), visible(series.name), output));
  }
  let at = null;
  const read = (step) => {
    at = step === null ? null : Math.max(0, Math.min(last, Math.round(step)));
    cursor.setAttribute('visibility', at === null ? 'hidden' : 'visible');
    if (at !== null) ['x1', 'x2'].forEach((name) => cursor.setAttribute(name, x(at)));
    chart.series.forEach((series, i) => {
      if (at === null) outputs[i].textContent = '';
      else if (series.kind === 'level') outputs[i].textContent = number(series.level);
      else {
        const [, value] = series.points.reduce((best, p) => (Math.abs(p[0] - at) < Math.abs(best[0] - at) ? p : best));
        outputs[i].textContent = chart.percent ? `${(100 * value).toFixed(1)} %` : number(value);
      }
    });
    title.textContent = chart.title + (at === null ? '' : `, step ${at.toLocaleString('en')}`);
  };
  picture.addEventListener('pointermove', (event) => {
    const box = picture.getBoundingClientRect();
    read((((event.clientX - box.left) / box.width) * WIDTH - LEFT) / (WIDTH - LEFT - RIGHT) * last);
  });
  picture.addEventListener('pointerleave', () => read(null));
  picture.addEventListener('blur', () => read(null));
  picture.addEventListener('keydown', (event) => {
    const move = {ArrowLeft: -1, ArrowRight: 1}[event.key];
    if (!move) return;
    event.preventDefault();
    read((at ?? (move > 0 ? -1 : last + 1)) + move * Math.max(1, Math.round(last / 100)));
  });
  const title = el('h3', {}, chart.title);
  return el('div', {className: 'chart'}, title, picture, key);
}

byId('charts').append(...data.charts.map(drawChart));
