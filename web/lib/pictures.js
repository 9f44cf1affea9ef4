// The pictures of a run, sorted: which steps have some, and each prompt's picture at a step beside the base's.

const LAST = Number.MAX_SAFE_INTEGER;

/** The steps that have pictures, rising; the base's own, step 0, only as long as no other stands beside them. */
export function pictureSteps(pictures) {
  const steps = [...new Set(pictures.map(({ step }) => step))].sort((a, b) => a - b);
  const isBeside = pictures.some(({ step, index }) => step > 0 && index !== null);
  return isBeside ? steps.filter((step) => step > 0) : steps;
}

/**
 * [{key, index, prompt, path, base, step, score}] of that step. base is a path, or null where there is none to compare with; a
 * picture of a prompt that was typed in has no index and comes last.
 */
export function pairsAt(pictures, step) {
  const bases = new Map(pictures.filter((picture) => picture.step === 0).map(({ index, path }) => [index, path]));
  return pictures
    .filter((picture) => picture.step === step && picture.path)
    .sort((a, b) => (a.index ?? LAST) - (b.index ?? LAST))
    .map((picture) => ({ ...picture, key: picture.index ?? picture.path, base: step === 0 ? null : (bases.get(picture.index) ?? null) }));
}
