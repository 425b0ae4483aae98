"use strict";
// Two linked sliders, presets without a page between, and a preview that follows.
// All of it works without: number inputs, links, and a page for the preview.
(function () {
    const rounded = (value) => Number(value.toFixed(9));

    function slider(input, label) {
        const range = document.createElement("input");
        Object.assign(range, { type: "range", min: 0, max: 1, step: 0.01, value: input.value, className: "cs-slider" });
        range.setAttribute("aria-label", label);
        range.id = input.id + "_slider";
        input.insertAdjacentElement("afterend", range);
        return range;
    }

    function link(vector) {
        const keyword = document.getElementById(vector.id.replace(/vector_weight$/, "keyword_weight"));
        const sliders = [slider(vector, "Vector weight"), slider(keyword, "Keyword weight")];
        const inputs = [vector, keyword];
        function set(index, value) {
            const values = index === 0 ? [value, rounded(1 - value)] : [rounded(1 - value), value];
            values.forEach((each, at) => {
                if (inputs[at] !== document.activeElement) {
                    inputs[at].value = each;
                }
                sliders[at].value = each;
            });
            vector.dispatchEvent(new CustomEvent("weights", { bubbles: true }));
        }
        inputs.concat(sliders).forEach((element, position) => {
            element.addEventListener("input", () => {
                const value = parseFloat(element.value);
                if (value >= 0 && value <= 1) {
                    set(position % 2, value);
                }
            });
        });
        return (weight) => set(0, weight);
    }

    // The weights once more, beside what they do: the page is higher than a window.
    function repeated(main, vector, before) {
        const place = document.createElement("p");
        place.className = "cs-live";
        const range = slider(vector, "Vector weight, beside the preview");
        range.id = "id_preview_slider";
        const figures = document.createElement("span");
        const save = document.createElement("button");
        Object.assign(save, { type: "submit", name: "_continue", className: "button", textContent: "Save and continue editing" });
        save.setAttribute("form", main.id);
        place.append(range, figures, save);
        before.insertAdjacentElement("afterend", place);
        function follow() {
            const value = parseFloat(vector.value);
            if (value >= 0 && value <= 1) {
                range.value = value;
                figures.textContent = `${value} meaning, ${rounded(1 - value)} words`;
            }
        }
        range.addEventListener("input", () => {
            vector.value = range.value;
            vector.dispatchEvent(new Event("input", { bubbles: true }));
        });
        main.addEventListener("weights", follow);
        follow();
    }

    function preview(section, form) {
        const result = document.getElementById("cs-preview-result");
        const status = result.querySelector(".cs-status");
        const copied = ["vector_weight", "similarity_threshold", "rerank_enabled"];
        let timer = null;
        let asked = 0;
        function sync() {
            copied.forEach((name) => {
                const from = document.getElementById("id_" + name);
                const to = form.elements[name];
                to.value = from.value;
                to.checked = from.checked;
            });
        }
        async function ask(submitter) {
            const mine = ++asked;
            if (section.classList.contains("cs-synced")) {
                sync();
            }
            if (submitter && submitter.name === "question") {
                form.elements.namedItem("id_question").value = submitter.value;
                submitter = null;
            }
            const data = new FormData(form, submitter);
            if (!data.get("question").trim()) {
                return;
            }
            result.setAttribute("aria-busy", "true");
            const answer = document.createElement("template");
            let redirected = false;
            try {
                const response = await fetch(form.action, {
                    method: "POST", body: data, credentials: "same-origin",
                    headers: { "X-Requested-With": "fetch" },
                });
                redirected = response.redirected;
                answer.innerHTML = await response.text();
            } catch (error) {
                answer.innerHTML = "";
            }
            // An answer that a later question has overtaken is nobody's any more.
            if (mine !== asked) {
                return;
            }
            if (redirected) {
                form.submit();
                return;
            }
            show(answer.content);
            result.removeAttribute("aria-busy");
        }
        // The status stays the same element, or its change would not be read out; and who
        // judges by keyboard stays on the button.
        function show(answer) {
            const told = answer.querySelector(".cs-status");
            const held = result.contains(document.activeElement) ? document.activeElement.value : null;
            result.querySelectorAll(".cs-columns").forEach((columns) => columns.remove());
            if (told === null) {
                status.textContent = "There was no answer. Try again, or load the page anew.";
                return;
            }
            status.replaceChildren(...told.childNodes);
            result.append(...answer.querySelectorAll(".cs-columns"));
            const again = held && result.querySelector(`button[value="${held}"]`);
            if (again) {
                again.focus({ preventScroll: true });
            }
        }
        function soon() {
            clearTimeout(timer);
            timer = setTimeout(ask, 250);
        }
        form.addEventListener("submit", (event) => {
            event.preventDefault();
            ask(event.submitter && event.submitter.name ? event.submitter : null);
        });
        const main = document.getElementById("retrievalconfig_form");
        const vector = document.getElementById("id_vector_weight");
        if (main && vector) {
            section.classList.add("cs-synced");
            repeated(main, vector, form.querySelector(".cs-edited"));
            main.addEventListener("weights", soon);
            main.addEventListener("change", soon);
        } else {
            form.elements.vector_weight.addEventListener("input", soon);
        }
    }

    function linkAll(root) {
        root.querySelectorAll("input[name$='vector_weight'][type='number']").forEach((vector) => {
            if (vector.form.id === "cs-preview" || vector.id.includes("__prefix__")) {
                return;
            }
            const set = link(vector);
            if (vector.id === "id_vector_weight") {
                vector.form.querySelectorAll("a.cs-preset").forEach((preset) => {
                    preset.addEventListener("click", (event) => {
                        event.preventDefault();
                        set(parseFloat(preset.dataset.vectorWeight));
                    });
                });
            }
        });
    }

    document.addEventListener("formset:added", (event) => linkAll(event.target));
    document.addEventListener("DOMContentLoaded", () => {
        linkAll(document);
        const form = document.getElementById("cs-preview");
        if (form) {
            preview(form.closest(".cs-preview"), form);
        }
    });
})();
