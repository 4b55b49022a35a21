// The algorithm that the policy has found: what it asks is a box, what it is told a branch, and every problem ends at a leaf.

const ROW = 25, BOX = 20, SPACE = 22, LETTER = 7.3, SMALL = 6.7;

/** Rows and columns: a leaf has a row of its own, a box stands in the middle of what follows it. */
function layOut(node, depth, rows, columns) {
  const parts = node.calls.map((call) => {
    columns[depth] ??= {seen: 0, box: 0};
    columns[depth].box = Math.max(columns[depth].box, inOneLine(call.asked).length * LETTER + 14);
    const after = call.seen.map(({text, next}) => {
      columns[depth + 1] ??= {seen: 0, box: 0};
      columns[depth + 1].seen = Math.max(columns[depth + 1].seen, inOneLine(text).length * SMALL + 12);
      return {text, ...layOut(next, depth + 1, rows, columns)};
    });
    return {call, after, row: (after[0].row + after.at(-1).row) / 2, depth};
  });
  const leaf = node.leaves.length ? {leaves: node.leaves, row: rows.count++, depth} : null;
  const all = [...parts, ...(leaf ? [leaf] : [])];
  return {parts, leaf, depth, row: (all[0].row + all.at(-1).row) / 2};
}

function drawTree(root) {
  const rows = {count: 0}, columns = [{seen: 0, box: 0}];
  const laid = layOut(root, 0, rows, columns);
  let x = 2;
  for (const column of columns) {
    column.label = x;
    column.left = x + column.seen;
    x = column.left + column.box + SPACE;
  }
  const lines = svg('g'), boxes = svg('g');
  const middle = (row) => row * ROW + ROW / 2;
  let right = 0;
  const draw = (point) => {
    for (const {call, after, row, depth} of point.parts) {
      const column = columns[depth], text = inOneLine(call.asked), width = text.length * LETTER + 14, y = middle(row);
      const box = svg('g', {class: colorOf(call.environment)}, svg('title', {}, `${inOneLine(call.environment)}: ${text}`));
      box.append(svg('rect', {x: column.left, y: y - BOX / 2, width, height: BOX, rx: 5}));
      box.append(svg('text', {x: column.left + 7, y: y + 4}, text));
      boxes.append(box);
      for (const next of after) {
        const goal = columns[depth + 1], from = column.left + width, to = goal.label - 3, half = (from + to) / 2;
        const end = middle(next.row);
        lines.append(svg('path', {class: 'edge', d: `M${from} ${y}C${half} ${y} ${half} ${end} ${to} ${end}`}));
        const told = inOneLine(next.text), after = goal.label + told.length * SMALL + 4;
        boxes.append(svg('text', {class: 'seen', x: goal.label, y: end + 4}, told));
        const ends = next.leaf ? 0 : goal.left - 4;  // a line to the box that follows, however short what was told
        if (ends > after) lines.append(svg('path', {class: 'edge', d: `M${after} ${end}H${ends}`}));
        draw(next);
      }
    }
    if (point.leaf) {
      const good = point.leaf.leaves.every((leaf) => leaf.good) && point.leaf.leaves.length === 1;
      const spent = point.leaf.leaves[0].spent.map(([name, value]) => `${name} ${+value.toFixed(2)}`).join(', ');
      const text = `${good ? '✓' : '✗'} ${spent}` + (point.leaf.leaves.length > 1 ? ` × ${point.leaf.leaves.length} problems` : '');
      boxes.append(svg('text', {class: good ? 'ending' : 'ending bad', x: columns[point.depth].left + 4, y: middle(point.leaf.row) + 4}, text));
      right = Math.max(right, columns[point.depth].left + text.length * 6.6 + 12);
    }
  };
  draw(laid);
  const width = Math.ceil(Math.max(right, x)), height = rows.count * ROW + 4;
  return svg('svg', {viewBox: `0 0 ${width} ${height}`, width, height, role: 'img', 'aria-label': `Decision tree with ${rows.count} leaves`}, lines, boxes);
}

function drawAlgorithm(found) {
  const claim = found.proved
    ? [el('b', {}, `✓ Proved, for all ${found.problems} problems.`), `Each ends at a leaf of its own, and every leaf is right (${found.claim}). `]
    : [el('b', {}, `✗ Not proved: ${found.good} of ${found.problems} problems are right (${found.claim}).`), `They end at ${found.leaves} different leaves. `];
  const names = [...new Set(found.rows.flatMap((row) => Object.keys(row.means)))];
  const table = el('table', {},
    el('thead', {}, el('tr', {}, el('th', {}, ''), ...names.map((name) => el('th', {}, name.replaceAll('_', ' '))), el('th', {}, `most ${found.cost}`))),
    el('tbody', {}, ...found.rows.map((row) => el('tr', {}, el('td', {}, visible(row.name)),
      ...names.map((name) => el('td', {}, row.means[name] === undefined ? '' : number(row.means[name]))), el('td', {}, row.worst === null ? '' : `${+row.worst.toFixed(3)}`)))));
  const used = (node) => node.calls.flatMap((call) => [call.environment, ...call.seen.flatMap(({next}) => used(next))]);
  const asked = new Set(found.trees.flatMap((tree) => used(tree.root)));
  const legend = data.environments.filter((name) => asked.has(name)).map((name) => el('span', {className: `d called ${colorOf(name)}`}, inOneLine(name)));
  const trees = found.trees.map((tree) => el('div', {className: 'tree'}, el('h3', {}, visible(tree.prompt)), el('div', {className: 'wide', tabIndex: 0}, drawTree(tree.root))));
  byId('found').append(
    el('p', {className: 'claim'}, ...claim, `Greedy decisions on ${visible(found.task)} after ${found.step} steps; means over its problems.`),
    el('div', {className: 'wide'}, table), el('div', {className: 'legend bare'}, ...legend), ...trees);
  byId('algorithm').hidden = false;
}

if (data.algorithm) drawAlgorithm(data.algorithm);
