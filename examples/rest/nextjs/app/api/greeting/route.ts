// A route of Next.js (app/api/greeting/route.ts): reads are answered from the proxy's memory.
// npm install @upstash/redis; UPSTASH_REDIS_REST_URL ends in the proxy's rest.path.
import { Redis } from "@upstash/redis";

const redis = Redis.fromEnv();

export async function GET() {
  return Response.json({ greeting: await redis.get<string>("greeting") });
}

export async function POST(request: Request) {
  const { greeting } = await request.json();
  await redis.set("greeting", greeting, { ex: 3600 });
  // The same client reads its own write, by upstash-sync-token.
  return Response.json({ greeting: await redis.get<string>("greeting") });
}
