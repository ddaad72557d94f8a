// Shows what /status.json has, every two seconds. It only sets texts and attributes, so a name from
// Redis cannot become markup.
'use strict';

const PERIOD = 2000;
// Otherwise a proxy that hangs would stay on the page as it was.
const TIMEOUT = 5000;
const byId = (id) => document.getElementById(id);
const whole = new Intl.NumberFormat('en', { maximumFractionDigits: 0 });
const count = (number) => (number === null ? '-' : whole.format(number));
const percent = (share) => (share === null ? '-' : `${(share * 100).toFixed(1)} %`);
const rate = (number) => number.toFixed(number < 10 ? 1 : 0);

function bytes(number) {
  if (number === null) return '-';
  const units = ['B', 'KiB', 'MiB', 'GiB', 'TiB'];
  let unit = 0;
  while (number >= 1024 && unit < units.length - 1) {
    number /= 1024;
    unit += 1;
  }
  return `${unit ? number.toFixed(1) : number} ${units[unit]}`;
}

function duration(seconds) {
  if (seconds === null) return '-';
  if (seconds < 0.001) return `${Math.round(seconds * 1e6)} µs`;
  return seconds < 1 ? `${seconds * 1000} ms` : `${seconds} s`;
}

function uptime(seconds) {
  const parts = [[86400, 'd'], [3600, 'h'], [60, 'min'], [1, 's']];
  const first = parts.findIndex(([length]) => seconds >= length);
  if (first < 0) return '0 s';
  return parts.slice(first, first + 2).map(([length, name], index) => {
    const left = index ? seconds % parts[first][0] : seconds;
    return `${Math.floor(left / length)} ${name}`;
  }).join(' ');
}

function rows(id, lines) {
  byId(id).replaceChildren(...lines.map((cells) => {
    const row = document.createElement('tr');
    row.append(...cells.map((text, column) => {
      const cell = document.createElement(column ? 'td' : 'th');
      if (!column) cell.scope = 'row';
      cell.textContent = text;
      return cell;
    }));
    return row;
  }));
}

function line(id, name, values, show, top) {
  const known = values.map((value, index) => [index, value]).filter(([, value]) => value !== null);
  const most = top || Math.max(1, ...known.map(([, value]) => value));
  const first = 180 - values.length;
  // A gap without reads ends a part of the line. A part of one point is a dot, by its round ends.
  const parts = known.map(([index, value], at) => {
    const begins = at === 0 || known[at - 1][0] !== index - 1;
    const point = `${first + index},${(39 - 38 * value / most).toFixed(2)}`;
    return begins ? `M${point}h0` : `L${point}`;
  });
  const drawing = byId(id);
  drawing.firstElementChild.setAttribute('d', parts.join(''));
  const last = known.length ? show(known[known.length - 1][1]) : 'no data yet';
  const summary = known.length ? `${last}, at most ${show(Math.max(...known.map(([, value]) => value)))}` : last;
  drawing.setAttribute('aria-label', `${name}: now ${summary}`);
  drawing.previousElementSibling.lastElementChild.textContent = summary;
}

let previous = null;

// Rates of the reads since the previous answer.
function rates(reads, now) {
  const before = previous;
  previous = { reads, now };
  return (name, total) => {
    if (!before) return null;
    const old = name === null ? before.reads.total
      : before.reads.outcomes.find((each) => each.outcome === name).reads;
    return Math.max(0, total - old) / ((now - before.now) / 1000);
  };
}

function show(status) {
  const { state, reads, history } = status;
  const perSecond = rates(reads, performance.now());
  const text = (number) => (number === null ? '-' : rate(number));
  setState(state.level, state.text);
  byId('ratio').textContent = percent(reads.hit_ratio);
  byId('rate').textContent = text(perSecond(null, reads.total));
  byId('total').textContent = count(reads.total);
  byId('saved').textContent = count(reads.from_memory);
  rows('outcomes', reads.outcomes.map((each) => [each.outcome, count(each.reads),
    text(perSecond(each.outcome, each.reads)), duration(each.p50_seconds), duration(each.p99_seconds)]));
  const { verified } = status;
  byId('verified').textContent = verified.sample > 0 || verified.stale > 0
    ? `${count(verified.equal)} equal, ${count(verified.stale)} stale`
    : 'off';
  byId('verified').dataset.level = verified.stale > 0 ? 'down' : '';
  line('line-reads', 'Reads per second', history.reads, rate);
  line('line-ratio', 'Hit ratio', history.hit_ratio, percent, 1);
  line('line-bytes', 'Bytes of entries', history.bytes, bytes);
  const total = status.memory_total;
  byId('memory-now').textContent = bytes(total.bytes);
  byId('memory-bound').textContent = bytes(total.max_bytes);
  byId('memory-share').value = total.max_bytes ? total.bytes / total.max_bytes : 0;
  rows('memory', [...status.memory.map((each) => [each.store, count(each.entries), count(each.max_entries),
    bytes(each.bytes), bytes(each.max_bytes)]),
  ['all', '-', '-', bytes(total.bytes), bytes(total.max_bytes)]]);
  rows('evictions', status.evictions.map((each) => [each.cause, count(each.values), count(each.replies)]));
  const listeners = status.connections.filter((each) => each.limit > 0);
  rows('connections', listeners.map((each) => [each.front_end, count(each.open), count(each.limit)]));
  rows('nodes', status.nodes.map((each) => [each.node, each.role, each.up ? 'up' : 'down']));
  byId('no-keys').hidden = status.hot_keys !== null;
  byId('keys-table').hidden = status.hot_keys === null;
  rows('keys', (status.hot_keys || []).map((each) => [each.key, count(each.reads)]));
  const reload = new Date(status.last_reload.time * 1000).toISOString().replace(/\.\d+Z$/, 'Z');
  byId('about').textContent = `Version ${status.version}, up for ${uptime(status.uptime_seconds)}. `
    + `Configuration of ${reload}${status.last_reload.applied ? '' : '; the last reload was refused'}.`;
}

// A screen reader reads the line aloud whenever it is set, so it is set only when it changes.
function setState(level, text) {
  const place = byId('state');
  place.dataset.level = level;
  if (place.textContent !== text) place.textContent = text;
}

async function poll() {
  try {
    const response = await fetch('status.json', { cache: 'no-store', signal: AbortSignal.timeout(TIMEOUT) });
    if (!response.ok) throw new Error(`status ${response.status}`);
    show(await response.json());
  } catch (error) {
    setState('down', `The proxy does not answer: ${error.message}.`);
  }
  setTimeout(poll, PERIOD);
}

poll();
