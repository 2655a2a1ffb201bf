// The calculator of capacity.md: the same formula as docs/tools/machines.py, from the numbers that the page brings.
(() => {
  const form = document.getElementById("capacity");
  if (!form) return;
  const known = JSON.parse(form.dataset.known);
  const say = (value) => Number(value.toPrecision(3)).toLocaleString("en", { maximumFractionDigits: 2 });

  const compute = () => {
    const read = (name) => Number(form.elements[name].value);
    const machine = known.machines[read("machine")];
    const [encode, bytes] = known.codec[form.elements.output.value];
    const coded = machine.cores / (1 / known.decode + 1 / encode);
    const line = known.gigabits * 1e9 / 8 / 1e6 / (known.codec.jpeg[1] + bytes);
    // On a CPU the codec takes the network's own cores, beside a GPU it works at the same time.
    const limits = machine.gpu
      ? { "the networks": machine.rate, "decoding and encoding": coded, "the line to the store": line }
      : { "the networks": 1 / (1 / machine.rate + 1 / coded), "the line to the store": line };
    const slowest = Object.keys(limits).reduce((one, other) => (limits[other] < limits[one] ? other : one));
    const megapixels = read("count") * read("megapixels");
    const hours = megapixels / limits[slowest] / 3600;
    const each = hours / Math.max(1, read("machines"));
    const time = each < 48 ? `${say(each)} hours` : `${say(each / 24)} days`;
    form.querySelector("output").textContent = megapixels > 0
      ? `${time} (${say(hours)} machine hours); slowest: ${slowest}. ` +
        `Reads ${say(megapixels * known.codec.jpeg[1] / 1e6)} TB of JPEG, writes ${say(megapixels * bytes / 1e6)} TB.`
      : "";
  };
  form.addEventListener("input", compute);
  form.addEventListener("submit", (event) => event.preventDefault());
  compute();
})();
