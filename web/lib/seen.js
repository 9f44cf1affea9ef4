// Whether an element can be seen now: it is in the page, on the screen, and the tab is in front.

/** Calls `onSeen` each time it comes into sight; `isSeen()` says whether it is; `end()` watches no longer. */
export function watchSight(element, onSeen) {
  let isOnScreen = false;
  const isSeen = () => isOnScreen && !document.hidden;
  const look = () => isSeen() && onSeen();
  const observer = new IntersectionObserver((entries) => {
    isOnScreen = entries[entries.length - 1].isIntersecting;
    look();
  });
  observer.observe(element);
  document.addEventListener("visibilitychange", look);
  return {
    isSeen,
    end: () => {
      observer.disconnect();
      document.removeEventListener("visibilitychange", look);
    },
  };
}
