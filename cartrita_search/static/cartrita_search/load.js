"use strict";
// What takes a while comes after the page; without this a link leads to it.
document.querySelectorAll("[data-load]").forEach(async (place) => {
    place.setAttribute("aria-busy", "true");
    try {
        const response = await fetch(place.dataset.load, {
            credentials: "same-origin", headers: { "X-Requested-With": "fetch" },
        });
        if (response.ok && !response.redirected) {
            place.innerHTML = await response.text();
        }
    } catch (error) {
        // The link stays.
    } finally {
        place.removeAttribute("aria-busy");
    }
});
