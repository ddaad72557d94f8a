-- What wrk sends for the REST cases: reads of some keys, few of them often, by POST.
-- wrk ... -- PATH TOKEN KEYS COMMANDS: each request has so many GETs; 1: a single command, not a pipeline.

local SEQUENCE = 4096
local requests, at = {}, 0

local function number_of(sums, sum)
  local wanted, low, high = math.random() * sum, 1, #sums
  while low < high do
    local middle = math.floor((low + high) / 2)
    if sums[middle] < wanted then low = middle + 1 else high = middle end
  end
  return low - 1
end

function init(args)
  local path, token, keys, commands = args[1], args[2], tonumber(args[3]), tonumber(args[4])
  local headers = {["Authorization"] = "Bearer " .. token, ["Content-Type"] = "application/json"}
  local sums, sum = {}, 0
  for rank = 1, keys do sum = sum + 1 / rank; sums[rank] = sum end
  math.randomseed(7)
  local function get() return string.format('["GET","key:%012d"]', number_of(sums, sum)) end
  for place = 1, SEQUENCE do
    if commands == 1 then
      requests[place] = wrk.format("POST", path, headers, get())
    else
      local lines = {}
      for line = 1, commands do lines[line] = get() end
      requests[place] = wrk.format("POST", path .. "/pipeline", headers, "[" .. table.concat(lines, ",") .. "]")
    end
  end
end

function request()
  at = at + 1
  return requests[at % SEQUENCE + 1]
end

function done(summary, latency)
  local errors = summary.errors
  local failed = errors.connect + errors.read + errors.write + errors.status + errors.timeout
  print(string.format("RESULT %d %d %d %d %d %d %d", summary.requests, summary.bytes, summary.duration, failed,
    latency:percentile(50), latency:percentile(99), latency:percentile(99.9)))
end
