// A worker without a library (Cloudflare Workers and the like): fetch is all that it needs.
// REST_URL and REST_TOKEN are a variable and a secret of the worker.
export default {
  async fetch(request, env) {
    const name = new URL(request.url).searchParams.get("name") ?? "nobody";
    const response = await fetch(`${env.REST_URL}/pipeline`, {
      method: "POST",
      headers: { Authorization: `Bearer ${env.REST_TOKEN}` },
      body: JSON.stringify([["INCR", `visits:${name}`], ["GET", "greeting"]]),
    });
    if (!response.ok) return new Response((await response.json()).error, { status: 502 });
    const [visits, greeting] = await response.json();
    return Response.json({ visits: visits.result, greeting: greeting.result });
  },
};
