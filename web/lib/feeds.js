// One feed a run: its events are asked for once a second and folded, for all who watch it, while any of them can be seen.
//
// The server is asked no more once the run is over; `wake` asks again, for a run that goes on. Where the server does not answer
// the questions become rarer, and the watchers are told.

import { emptyState, foldAll, isOver } from "./fold.js";

const SECOND = 1000;
const RAREST = 8 * SECOND;
const MANY = 500; // events in one answer: there are more where these came from

export function makeFeeds(server) {
  const feeds = new Map();
  const feedOf = (id) => {
    if (!feeds.has(id)) feeds.set(id, makeFeed(server, id));
    return feeds.get(id);
  };
  return {
    /** Tell `onState({state, server, isLost})` of each change; returns what stops it. `isSeen()` says whether it is worth it. */
    watch: (id, isSeen, onState) => feedOf(id).watch(isSeen, onState),
    /** Somebody who watches can be seen again. */
    wake: (id) => feeds.get(id)?.wake(),
    /** The server has word of the run: it begins, goes on or ends. */
    revive: (id) => feeds.get(id)?.revive(),
    /** The run was deleted: should it be trained again, it begins anew. */
    forget: (id) => feeds.get(id)?.forget(),
  };
}

function makeFeed(server, id) {
  const watchers = new Set();
  const feed = { state: emptyState(), next: 0, server: "", isLost: false, isGone: false };
  let timer = null;
  let isAsking = false;
  let pause = SECOND;

  const tell = () => watchers.forEach(({ onState }) => onState({ ...feed }));
  const isWatched = () => [...watchers].some(({ isSeen }) => isSeen());

  /** Returns whether there may be more to read at once. */
  const take = ({ events, next, state, restarted }) => {
    const isEnd = isOver(state) && state !== feed.server;
    const isNew = events.length > 0 || restarted || state !== feed.server || feed.isLost;
    if (restarted) feed.state = emptyState();
    Object.assign(feed, { state: events.length ? foldAll(feed.state, events) : feed.state, next, server: state, isLost: false });
    pause = SECOND;
    if (isNew) tell();
    return isEnd || (events.length > 0 && (isOver(state) || events.length >= MANY));
  };
  const fail = (error) => {
    feed.isGone = error.status === 404;
    feed.isLost = true;
    pause = Math.min(RAREST, 2 * pause);
    tell();
  };
  const ask = async () => {
    clearTimeout(timer);
    timer = null;
    if (isAsking || !isWatched()) return;
    isAsking = true;
    let isMore = false;
    try {
      isMore = take(await server.events(id, feed.next));
    } catch (error) {
      fail(error);
    }
    isAsking = false;
    if (isMore) ask();
    else if (!feed.isGone && (feed.isLost || !isOver(feed.server))) timer = setTimeout(ask, pause);
  };

  return {
    watch: (isSeen, onState) => {
      const watcher = { isSeen, onState };
      watchers.add(watcher);
      if (feed.server || feed.isLost) onState({ ...feed });
      if (!timer && !feed.isGone) ask();
      return () => watchers.delete(watcher);
    },
    wake: () => {
      if (!feed.isGone && (!timer || feed.isLost)) ask();
    },
    revive: () => {
      feed.isGone = false;
      ask();
    },
    forget: () => {
      clearTimeout(timer);
      Object.assign(feed, { state: emptyState(), next: 0, server: "", isLost: true, isGone: true });
      tell();
    },
  };
}
