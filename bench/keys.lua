-- What wrk asks for: reads of some keys, few of them often (Zipf, s = 1), the same for every server and every round.
-- wrk ... -- PATH SUFFIX KEYS EVERY NEXT FIRST SPAN: every EVERYth read is not of these, but of the SPAN keys from
-- number FIRST on, one after the other, beginning with the NEXTth; 0: none is.

local SEQUENCE = 65536
local path, suffix, keys, every, turn, first, span
local requests, sequence, at = {}, {}, 0

local function name(number)
  return wrk.format("GET", path .. string.format("key:%012d", number) .. suffix)
end

-- Numbers of keys, each as often as its rank wants.
local function skewed()
  local sums, sum = {}, 0
  for rank = 1, keys do sum = sum + 1 / rank; sums[rank] = sum end
  for place = 1, SEQUENCE do
    local wanted, low, high = math.random() * sum, 1, keys
    while low < high do
      local middle = math.floor((low + high) / 2)
      if sums[middle] < wanted then low = middle + 1 else high = middle end
    end
    sequence[place] = low
  end
end

function init(args)
  path, suffix = args[1], args[2]
  keys, every, turn = tonumber(args[3]), tonumber(args[4]), tonumber(args[5])
  first, span = tonumber(args[6]), tonumber(args[7])
  math.randomseed(7)
  skewed()
  for number = 1, keys do requests[number] = name(number - 1) end
end

function request()
  at = at + 1
  if every > 0 and at % every == 0 then
    turn = turn + 1
    return name(first + turn % span)
  end
  return requests[sequence[at % SEQUENCE + 1]]
end

function done(summary, latency)
  local errors = summary.errors
  local failed = errors.connect + errors.read + errors.write + errors.status + errors.timeout
  print(string.format("RESULT %d %d %d %d %d %d %d", summary.requests, summary.bytes, summary.duration, failed,
    latency:percentile(50), latency:percentile(99), latency:percentile(99.9)))
end
